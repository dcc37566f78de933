import resource

import pytest

from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.whole_file import whole_file


@pytest.fixture
def disk_of():
    """disk_of(n): no file of this process may grow beyond n bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(
        resource.RLIMIT_FSIZE, (n, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'new folder/file'
    with whole_file(path, '--out') as file:
        file.write(b'abc')
        assert not path.exists()
    assert path.read_bytes() == b'abc'
    assert list(path.parent.iterdir()) == [path]


def test_what_is_there_stays_if_something_goes_wrong(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(KeyError), whole_file(path, '--out') as file:
        file.write(b'new')
        raise KeyError
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path, disk_of):
    disk_of(1000)
    with pytest.raises(ConfigError, match='--out: .*file cannot be written'), \
            whole_file(tmp_path / 'file', '--out') as file:
        file.write(bytes(10000))
    assert list(tmp_path.iterdir()) == []


def test_no_place_to_write(tmp_path):
    (tmp_path / 'file').touch()
    for path in tmp_path / 'file/inside', tmp_path:
        with pytest.raises(ConfigError, match='cannot be written'), \
                whole_file(path, 'OUT') as file:
            file.write(b'abc')
    assert list(tmp_path.iterdir()) == [tmp_path / 'file']
