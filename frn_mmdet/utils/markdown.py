"""Tables that read well on a terminal and on a page."""


def table(rows: list[dict], columns: list[str]) -> str:
    """A Markdown table.

    Args:
        rows (list[dict]): A value for each column; what one lacks is a dash.
        columns (list[str]): Their names, in the order to print.

    Returns:
        str: Its lines, aligned.
    """
    cells = [tuple(columns)] + [
        tuple(str(row.get(column, '-')) for column in columns)
        for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        '| ' + ' | '.join(
            cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)) + ' |'
        for row in cells
    ]
    lines.insert(1, '|' + '|'.join('-' * (w + 2) for w in widths) + '|')
    return '\n'.join(lines)
