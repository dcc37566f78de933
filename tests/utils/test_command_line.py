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


@pytest.mark.parametrize('value', ['foo', 'a=[(1]'])
def test_anything_else_is_a_sentence(parser, value, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', value])
    assert 'argument --cfg-options: KEY=VALUE is wanted' in (
        capsys.readouterr().err)
