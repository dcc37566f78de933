"""What a comparison trains, checked before it starts."""

import copy
import math
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config

from ..errors import ConfigError
from ..switch.config import dicts_of, planned_parts
from ..switch.norms import NormPlan, parse_norm_cfg, read_norm
from ..switch.sites import norm_sites
from ..switch.stock_settings import drop_checkpoint, unfit_checkpoint, unfreeze
from ..utils.markdown import table
from .cell import Cell
from .cell_config import cell_config
from .check_arguments import check_norms, check_numbers, check_spelling
from .grid import Grid
from .schedule import by_epoch, count_in_steps, peak_lr
from .user_config import count_images, in_one_sentence, read_config


class Comparison:
    """What a comparison trains, and the config of each training.

    All see the same number of images, and the learning rate grows with the
    batch (section 4.2 of the paper), unless asked otherwise.

    Args:
        config (str): A config file, or mmdet's own as ``mmdet::folder/name``.
        norms (list[str]): See :func:`read_norm`.
        batch_sizes (list[int]): Images per GPU.
        seeds (int): How many, from 0.
        lrs (list[float], optional): Peak learning rates at the reference
            batch, which is ``auto_scale_lr.base_batch_size`` or else the
            config's own batch. Default: the config's.
        same_lr (bool): One learning rate for every batch size.
        same_steps (bool): The same number of steps rather than of images.
        pretrained (bool): Whether norms keep an ImageNet checkpoint of the
            config that they can start from, though others cannot.
        gpus (int): Of a training; 0 for the CPU.
        options (dict, optional): Overrides of the config.
        begun (Grid, optional): What earlier commands asked for in the same
            folder: it is compared, too, and not trained.

    Attributes:
        asked (Grid): What is trained.
        whole (Grid): What is compared.

    Raises:
        ConfigError: If no training could start like that.
    """

    def __init__(self, config: str, norms: list[str], batch_sizes: list[int],
                 seeds: int, lrs: list[float] | None = None,
                 same_lr: bool = False, same_steps: bool = False,
                 pretrained: bool = False, gpus: int = 0,
                 options: dict | None = None,
                 begun: Grid | None = None) -> None:
        self.config = str(config)
        self.same_lr, self.same_steps = same_lr, same_steps
        self.gpus = gpus
        check_numbers(batch_sizes, seeds, lrs or [])
        check_norms(norms, gpus)
        self.cfg = read_config(self.config, options or {})
        with in_one_sentence(f'config: {self.config}'):
            self.asked = Grid(norms, batch_sizes, seeds, self._lrs(lrs))
        self.whole = self.asked
        if begun is not None:
            check_spelling(self.asked, begun)
            self.whole = self.asked.joined(begun)
        self.notes = []
        if not pretrained:
            self._drop_checkpoints()
        self._images = count_images(self.cfg)
        with in_one_sentence(f'config: {self.config}'):
            self._accumulate = self.cfg.optim_wrapper.get(
                'accumulative_counts', 1)
            self.reference = self._reference()
            if same_steps and by_epoch(self.cfg):
                count_in_steps(self.cfg, math.ceil(
                    self._images * self._accumulate / self.reference))
            for batch in batch_sizes:
                self._check_steps(batch)
            # What cannot be written fails here, whatever the batch.
            written = self.cell_config(
                Cell(norms[0], batch_sizes[0], self.asked.lrs[0], 0),
                Path()).pretty_text
            Config.fromstring(written, '.py')  # as a training reads it
        self._models = {norm: self._build(norm) for norm in norms}

    @property
    def masks(self) -> bool:
        """Whether masks are evaluated."""
        return 'segm' in str(self.cfg.val_evaluator)

    def lr(self, cell: Cell) -> float:
        """The peak learning rate that a cell trains at."""
        return cell.lr / (1 if self.same_lr else self._factor(cell.batch))

    def steps(self, batch: int) -> int:
        """Training steps of a cell."""
        if by_epoch(self.cfg):
            per_gpu = math.ceil(self._images / max(1, self.gpus))
            return self.cfg.train_cfg.max_epochs * math.ceil(per_gpu / batch)
        factor = 1 if self.same_steps else self._factor(batch)
        return max(1, round(self.cfg.train_cfg.max_iters * factor))

    def images(self, batch: int) -> int:
        """Images that a cell sees, each as often as it is seen."""
        if by_epoch(self.cfg):
            return self.cfg.train_cfg.max_epochs * self._images
        return self.steps(batch) * batch * max(1, self.gpus)

    def cell_config(self, cell: Cell, folder: Path) -> Config:
        """The config of a cell that writes to ``folder``."""
        factor = 1 if self.same_steps else self._factor(cell.batch)
        return cell_config(self.cfg, cell, self.lr(cell),
                           self.steps(cell.batch), factor, folder)

    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: weights, and Adam's two states."""
        return max(count for count, _ in self._models.values()) * 4 * 3

    def describe(self) -> str:
        """What will be trained, for the reader."""
        norms, batch_sizes, seeds, lrs = self.asked
        lines = [
            f'{self.config}: {len(norms)} norms x {len(batch_sizes)} batch '
            'sizes x '
            + (f'({len(lrs)} learning rates of seed 0 + {seeds - 1} seeds '
               'more at the best)' if len(lrs) > 1 else f'{seeds} seeds')
            + f' = {self.asked.count} trainings.', ''
        ]
        lines += [table([{
            'images/GPU': batch,
            'GPUs': self.gpus or 'CPU',
            'steps': self.steps(batch),
            'images': self.images(batch),
            'peak LR': ', '.join(
                f'{self.lr(Cell("", batch, lr, 0)):g}' for lr in lrs),
        } for batch in batch_sizes], [
            'images/GPU', 'GPUs', 'steps', 'images', 'peak LR'
        ]), '']
        lines += [f'{norm}: {sites}'
                  for norm, (_, sites) in self._models.items()]
        lines += self.notes
        rates = ', '.join(f'{lr:g}' for lr in lrs)
        lines += [
            f'LR {rates} is at {self.reference:g} images a step'
            + (', and at every batch size (--same-lr).' if self.same_lr else
               ', and grows with the batch.')
        ]
        if self.whole != self.asked:
            lines += ['The report is also of what earlier commands trained '
                      'in the same folder.']
        return '\n'.join(lines)

    def fingerprint(self) -> dict:
        """What makes two plans the same one, for JSON.

        The config as it came out: not its path, which may be written in
        many ways, and without a norm.
        """
        with in_one_sentence(f'config: {self.config}'):
            resolved = self.cfg.pretty_text
        return self.whole._asdict() | dict(
            same_lr=self.same_lr, same_steps=self.same_steps, gpus=self.gpus,
            resolved=resolved)

    def _factor(self, batch: int) -> float:
        """Steps at a batch size for each step at the reference."""
        return self.reference / (
            batch * max(1, self.gpus) * self._accumulate)

    def _reference(self) -> float:
        """Images of a step of the optimizer that the schedule is made for."""
        scale = self.cfg.get('auto_scale_lr') or {}
        images = scale.get('base_batch_size') or (
            self.cfg.train_dataloader.batch_size * max(1, self.gpus)
            * self._accumulate)
        if not images > 0:
            raise ConfigError(
                'auto_scale_lr.base_batch_size or, without it, the batch of '
                f'{self.config}: a number above 0 is needed, got {images}')
        return images

    def _lrs(self, given: list[float] | None) -> list[float]:
        """The learning rates; the config's schedule is scaled to each."""
        own = peak_lr(self.cfg)
        if not 0 < own < math.inf:
            raise ConfigError(
                'optim_wrapper.optimizer.lr: a learning rate is a number '
                f'above 0, got {own}')
        return given or [own]

    def _check_steps(self, batch: int) -> None:
        if self.steps(batch) < 1:
            raise ConfigError(
                f'train_cfg: {self.config} trains {self.steps(batch)} steps '
                f'at batch {batch}, 1 is the least')

    def _drop_checkpoints(self) -> None:
        """Start all norms alike, from scratch if one of them must."""
        for norm in self.whole.norms:
            plan = parse_norm_cfg(read_norm(norm))
            for key, part in planned_parts(self.cfg.model, plan):
                for at, cfg in dicts_of(part, key):
                    self._drop_checkpoint(at, cfg, norm, plan)

    def _drop_checkpoint(self, at: str, cfg: dict, norm: str,
                         plan: NormPlan) -> None:
        path = unfit_checkpoint(cfg, plan)
        if path is not None:
            drop_checkpoint(cfg)
            unfreeze(at, cfg, plan)
            self.notes.append(
                f'{at}: all norms train from scratch, since {path} cannot '
                f'start {norm} (--pretrained keeps it where it can).')

    def _build(self, norm: str) -> tuple[int, str]:
        """Parameters and sites of a norm's detector; it must be possible."""
        model = copy.deepcopy(self.cfg.model)
        model.norm_cfg = read_norm(norm)
        with in_one_sentence(f'--norms: {norm} cannot be built'):
            detector = MODELS.build(model)
        sites = norm_sites(detector)
        norms = sum(site.norm is not None for site in sites)
        tlus = sum(site.activation == 'TLU' for site in sites)
        return (sum(p.numel() for p in detector.parameters()),
                f'{norms} norms, {tlus} TLU')
