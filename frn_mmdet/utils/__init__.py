"""Files, tables and command lines: what the tools share."""
