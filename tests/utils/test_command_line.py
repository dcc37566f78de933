"""Pairs as mmdet reads them; whatever is none is one sentence."""

import argparse

import pytest

from frn_mmdet.utils.command_line import CfgOptions


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions)
    return parser


def test_pairs_are_values_of_python(parser):
    args = parser.parse_args(['--cfg-options', 'a.b=1', 'c=[x,2.5]'])
    assert args.cfg_options == {'a.b': 1, 'c': ['x', 2.5]}


@pytest.mark.parametrize('value, words', [
    ('foo', 'KEY=VALUE is wanted'), ('a=[(1]', 'KEY=VALUE is wanted'),
    ('a=[dict(b=1,c=2)]', 'no dict')])
def test_anything_else_is_a_sentence(parser, value, words, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', value])
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'argument --cfg-options: ' in said and words in said
