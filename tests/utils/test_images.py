"""A folder's images; what is none is named."""

import pytest
from mmcv.transforms import Compose

from frn_mmdet.errors import ConfigError
from frn_mmdet.utils.images import image_files, read_image


def test_images_alone_in_order(tmp_path):
    for name in 'b.JPG', 'a.png', 'c.txt':
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path, 9)] == [
        'a.png', 'b.JPG']
    assert len(image_files(tmp_path, 1)) == 1
    for folder in (tmp_path / 'nowhere', tmp_path / 'c.txt'):
        with pytest.raises(ConfigError, match='--images: no images in'):
            image_files(folder, 9)


def test_a_broken_image_is_named(tmp_path):
    file = tmp_path / 'a.png'
    file.write_text('no image')
    with pytest.raises(ConfigError, match='--images: .*a.png cannot be read'):
        read_image(Compose([dict(type='LoadImageFromFile')]), file)
