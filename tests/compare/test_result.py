"""Results are read from what mmengine and mmdet write."""

import json

import pytest

from frn_mmdet.compare.cell import Cell
from frn_mmdet.compare.result import COLUMNS, Ended, is_ok, reason, row_of

CELL = Cell('GN:num_groups=8', 4, .02, 1)


@pytest.fixture
def read(tmp_path):
    """read(*logs, text, returncode): what became of a training.

    Each log is the records of one process, in the order they started.
    """

    def _read(*logs, text='', returncode=0, resumed=False, masks=False):
        for i, records in enumerate(logs):
            file = tmp_path / f'20260101_00000{i}/vis_data/scalars.json'
            file.parent.mkdir(parents=True)
            file.write_text('\n'.join(map(json.dumps, records)))
        log = tmp_path / 'log.txt'
        log.write_text(text)
        return row_of(Ended(CELL, tmp_path, log, returncode, 12.34, 600.7,
                            resumed, masks))

    return _read


def train(step, loss, **more):
    return dict(loss=loss, iter=step, step=step, **more)


def coco(ap, **more):
    return {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': .9, 'step': 1, **more}


def test_the_last_evaluation_counts(read):
    row = read([train(10, 2.), coco(.1), train(20, 1.), coco(.3)])
    assert list(row) == list(COLUMNS)
    assert row | {'AP75': None} == dict(
        norm='GN:num_groups=8', batch=4, lr=.02, seed=1, steps=20, AP=.3,
        AP50=.9, AP75=None, segm_AP=None, loss=1., seconds=12.3,
        memory_MiB=601, status='ok')


def test_a_resumed_training(read):
    row = read([train(10, 2.), coco(.1), train(20, 3.)],
               [train(20, 1.5), coco(.2)], resumed=True)
    assert (row['AP'], row['loss'], row['steps']) == (.2, 1.5, 20)
    assert row['status'] == 'ok, resumed'
    assert is_ok(row)


def test_memory_of_a_gpu_is_its_own(read):
    row = read([train(1, 1., memory=900), train(2, 1., memory=800), coco(.1)])
    assert row['memory_MiB'] == 900


@pytest.mark.parametrize('key', ['coco/bbox_mAP', 'lvis/bbox_AP',
                                 'pascal_voc/mAP'])
def test_other_evaluators(read, key):
    assert read([train(1, 1.), {key: .4, 'step': 1}])['AP'] == .4


def test_masks(read):
    row = read([train(1, 1.), coco(.2, **{'coco/segm_mAP': .1})], masks=True)
    assert row['segm_AP'] == .1


@pytest.mark.parametrize('masks, segm', [(False, None), (True, 0.)])
def test_no_box_at_all_is_an_ap_of_zero(read, masks, segm):
    text = 'ERROR - The testing results of the whole dataset is empty.'
    row = read([train(1, 1.), {'time': 1, 'step': 1}], text=text, masks=masks)
    assert (row['AP'], row['AP50'], row['segm_AP']) == (0, 0, segm)
    assert row['status'] == 'ok'


def test_no_ap_is_not_a_result(read):
    row = read([train(1, 1.)])
    assert row['status'] == 'crashed: it logged no AP'
    assert not is_ok(row)


@pytest.mark.parametrize('records, text, returncode', [
    ([train(1, 5.), train(2, float('nan'))], '', 0),
    ([train(1, float('inf'))], 'RuntimeError: no box is finite', 1),
    ([train(1, 5.)], 'loss become infinite or NaN!\nAssertionError: None', 1),
])
def test_diverged(read, records, text, returncode):
    row = read([*records, coco(.1)], text=text, returncode=returncode)
    assert row['status'] == 'diverged'
    assert row['AP'] is None


def test_crashed(read):
    text = ('Traceback (most recent call last):\n  File "a.py"\n'
            'ValueError: Expected more than 1 value per channel\n')
    row = read([train(1, 5.)], text=text, returncode=1)
    assert row['status'] == ('crashed: ValueError: Expected more than 1 value '
                             'per channel')
    assert (row['AP'], row['steps'], row['seconds']) == (None, 1, 12.3)


def test_crashed_before_its_first_step(read):
    row = read(text='error: no such norm', returncode=1)
    assert row['status'] == 'crashed: error: no such norm'
    assert row['steps'] is None


@pytest.mark.parametrize('text, returncode, expected', [
    ('', -9, 'killed by signal 9 (out of memory?)'),
    ('', -15, 'killed by signal 15'),
    ('no error is named', 3, 'exit status 3'),
    ('torch.cuda.OutOfMemoryError: CUDA out of memory.\nbye', 1,
     'torch.cuda.OutOfMemoryError: CUDA out of memory.'),
    ('[rank1]: KeyError: 1\n[rank1]: RuntimeError: of rank 1\n', 1,
     'RuntimeError: of rank 1'),
])
def test_reason(text, returncode, expected):
    assert reason(text, returncode) == expected


def test_a_line_cut_by_a_kill_is_left_out(tmp_path, read):
    row = read([train(1, 1.), coco(.5)])
    log = next(tmp_path.glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text() + '\n{"loss": 9')
    assert row_of(Ended(CELL, tmp_path, tmp_path / 'log.txt', 0, 12.34, 600.7,
                        False, False)) == row
