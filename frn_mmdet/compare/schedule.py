"""Change a config's learning rate, or its length, whatever counts it."""

from typing import Any

# A scheduler's keys that are rates, and those that are moments.
RATES = ('eta_max', 'eta_min')
MOMENTS = ('begin', 'end', 'T_max', 'total_steps', 'step_size', 'milestones')


def peak_lr(cfg: dict) -> float:
    """The highest learning rate of a config's schedule."""
    return max([cfg['optim_wrapper']['optimizer']['lr']] +
               [s.get('eta_max') or 0 for s in _schedulers(cfg)])


def set_peak_lr(cfg: dict, lr: float) -> None:
    """Scale, in place, a schedule to another peak."""
    factor = lr / peak_lr(cfg)
    optimizer = cfg['optim_wrapper']['optimizer']
    optimizer['lr'] *= factor
    for scheduler in _schedulers(cfg):
        for key in RATES:
            if scheduler.get(key) is not None:
                scheduler[key] *= factor


def scale_steps(cfg: dict, factor: float) -> None:
    """Multiply, in place, all that a config counts in steps.

    What is counted in epochs stays.
    """
    loop = cfg['train_cfg']
    if not by_epoch(cfg):
        for key in ('max_iters', 'val_interval', 'val_begin'):
            if key in loop:
                loop[key] = _times(loop[key], factor)
        if loop.get('dynamic_intervals'):
            loop['dynamic_intervals'] = [
                (_times(begin, factor), _times(interval, factor))
                for begin, interval in loop['dynamic_intervals']
            ]
    for scheduler in _schedulers(cfg):
        if not scheduler.get('by_epoch', True):
            _scale_moments(scheduler, factor)
    norm_cfg = cfg['model'].get('norm_cfg')
    for key, value in norm_cfg.items() if norm_cfg else ():
        if key.endswith('_steps'):  # BRN's limits grow with the steps
            norm_cfg[key] = _times(value, factor)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if checkpoint and not checkpoint.get('by_epoch', True):
        checkpoint['interval'] = _times(checkpoint['interval'], factor)


def count_in_steps(cfg: dict, epoch: int) -> None:
    """Turn, in place, a config that counts epochs into one of steps.

    Args:
        cfg (dict): A whole config.
        epoch (int): Steps that an epoch stands for.
    """
    loop = cfg['train_cfg']
    cfg['train_cfg'] = dict(
        type='IterBasedTrainLoop',
        max_iters=loop['max_epochs'] * epoch,
        val_interval=loop.get('val_interval', 1) * epoch)
    for scheduler in _schedulers(cfg):
        if scheduler.get('by_epoch', True):
            _scale_moments(scheduler, epoch)
            scheduler['by_epoch'] = False
            scheduler.pop('convert_to_iter_based', None)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if checkpoint and checkpoint.get('by_epoch', True):
        checkpoint['by_epoch'] = False
        checkpoint['interval'] = checkpoint.get('interval', 1) * epoch
    cfg['log_processor'] = dict(
        cfg.get('log_processor') or dict(type='LogProcessor'), by_epoch=False)


def by_epoch(cfg: dict) -> bool:
    """Whether a config trains for epochs rather than for steps."""
    return 'max_epochs' in cfg['train_cfg']


def _schedulers(cfg: dict) -> list[dict]:
    value = cfg.get('param_scheduler') or []
    return value if isinstance(value, list) else [value]


def _scale_moments(scheduler: dict, factor: float) -> None:
    for key in MOMENTS:
        if scheduler.get(key) is not None:
            scheduler[key] = _times(scheduler[key], factor)


def _times(value: Any, factor: float) -> Any:
    """A moment, or a list of moments, later; the first step is the first."""
    if isinstance(value, (list, tuple)):
        return [_times(item, factor) for item in value]
    return max(1, round(value * factor)) if value else value
