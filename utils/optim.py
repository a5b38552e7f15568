"""The optimiser and the learning-rate schedule that the flags of train.py describe."""

import math
from functools import partial

import torch


def build_optimizer(modules, args):
    """SGD with Nesterov momentum or AdamW; no weight decay on biases and batch normalisation.

    modules: {name: (module, factor on the learning rate)}; parameters without a gradient are left
    out, and each group has its module's "name".
    args: has optimizer ("sgd" or "adamw"), lr, momentum, weight_decay.
    """
    groups = []
    for name, (module, factor) in modules.items():
        trained = [p for p in module.parameters() if p.requires_grad]
        decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        rate = {"name": name, "lr": factor * args.lr}
        groups.append({"params": decayed, **rate})
        groups.append({"params": others, **rate, "weight_decay": 0.0})
    fused = any(p.is_cuda for group in groups for p in group["params"])
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": fused}
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    return torch.optim.SGD(groups, momentum=args.momentum, nesterov=args.momentum > 0, **options)


def learning_rate_factor(step, args, steps_per_epoch):
    """The learning rate of a step over the highest one: linear warm-up, then the schedule.

    args: has epochs, schedule ("cosine", "step", "constant"), warmup_epochs, step_epochs.
    """
    epoch = (step + 1) / steps_per_epoch
    if epoch < args.warmup_epochs:
        return epoch / args.warmup_epochs
    if args.schedule == "step":
        return 0.1 ** (step // (steps_per_epoch * args.step_epochs))
    if args.schedule == "cosine":
        rest = max(args.epochs - args.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min((epoch - args.warmup_epochs) / rest, 1)))
    return 1.0


def build_scheduler(optimizer, args, steps_per_epoch):
    """`learning_rate_factor` as a scheduler to step after every batch."""
    factor = partial(learning_rate_factor, args=args, steps_per_epoch=steps_per_epoch)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
