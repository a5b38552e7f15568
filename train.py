"""Train a 3D network to give clips of the same action nearby hash codes.

    python train.py --config configs/ucf101.yaml
    python train.py --config configs/folder.yaml --frames data/mine/frames \
        --splits data/mine/splits --output runs/mine

The run folder receives last.pt (the newest epoch), best.pt (the best validation mAP),
metrics.jsonl (one line an epoch) and TensorBoard files. The same command again resumes.
"""

import argparse
import math
import os
import sys
import time
from functools import partial
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets import (
    FrameFolders,
    PKBatchSampler,
    SplitError,
    augment,
    prepare,
    read_classes,
    read_split,
)
from losses import DISTANCES, MINING
from models import BACKBONES, build_network
from utils.checkpoint import CheckpointError, Training, save_checkpoint
from utils.codes import binarize
from utils.config import (
    HelpFormatter,
    fraction,
    non_negative_float,
    parse_args,
    positive_float,
    positive_int,
    whole_number,
)
from utils.files import write_text
from utils.log import RunLog
from utils.metrics import evaluate
from utils.optimisation import build_optimizer, build_scheduler, mixed_precision
from utils.retrieval import encode

# These may differ when a run is resumed: they do not change what is learnt.
FREE_SETTINGS = {"config", "restart", "workers", "device", "frames", "splits", "output"}
NETWORK_SETTINGS = ("backbone", "bits", "width", "shortcut", "dropout")
CHECK_EVERY = 20  # steps between looks at the loss, since each look waits for the GPU


# fmt: off
def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("run").add_argument
    add("--config", help="YAML file of flags; what stands on the command line wins")
    add("--frames", required=True, help="what extract_frames.py wrote")
    add("--splits", required=True, help="what make_splits.py wrote")
    add("--output", required=True, help="run folder; an existing one is resumed")
    add("--restart", action="store_true", help="begin anew in an existing run folder")
    add("--seed", type=whole_number, default=0, help="of weights, batches and augmentation")
    add("--device", help="cuda, cuda:1, cpu; a GPU if there is one when not given")
    add("--workers", type=whole_number, default=min(8, os.cpu_count()),
        help="processes that read frames")
    add("--amp", action=switch, default=True, help="mixed precision on GPUs; CPUs use float32")

    add = parser.add_argument_group("clip and augmentation").add_argument
    add("--clip-frames", type=positive_int, default=16, help="frames a clip; 16 or 32 are usual")
    add("--size", type=positive_int, default=112, help="side of the network's input, pixels")
    add("--crop", type=positive_float, default=0.875,
        help="side of the central test crop over the frame's shorter side; 0.875 is 112 of 128")
    add("--crop-scale", type=positive_float, nargs=2, default=[0.7, 1.0], metavar=("LEAST", "MOST"),
        help="side of the random training crop over the frame's shorter side")
    add("--flip", action=switch, default=True,
        help="mirror half of the training clips; off where left and right are different actions")
    add("--colour-jitter", type=fraction, default=0.2,
        help="strength of brightness, contrast and saturation changes, one draw a clip")

    add = parser.add_argument_group("network").add_argument
    add("--backbone", choices=BACKBONES, default="resnet18", help="the README tells their cost")
    add("--bits", type=positive_int, default=64, help="length of the hash code")
    add("--width", type=positive_float, default=1.0, help="factor on channels; 0.5 suits a CPU")
    add("--shortcut", choices=("A", "B"),
        help="of ResNets where the size changes: A zero padding, B 1x1x1 convolution; when not "
        "given, what the pretrained weights need, else B")
    add("--dropout", type=fraction, default=0.0, help="before the hash layer; 0.5 suits C3D")

    add = parser.add_argument_group("pretrained weights").add_argument
    add("--pretrained", metavar="NAME_OR_PATH",
        help="r3d18_kinetics400, which torchvision downloads, or a file of a known family (see the "
        "README), or a checkpoint of train.py; the file decides mean, range and channel order")
    add("--backbone-lr-factor", type=positive_float, default=1.0,
        help="learning rate of the backbone over that of the hash layer; 0.1 is usual")
    add("--freeze-until", metavar="LAYER",
        help="train only what comes after this layer: layer1 to layer4, conv1 to fc7 in C3D")
    add("--freeze-batch-norm", action=switch, default=False,
        help="keep the pretrained running means and variances; for small batches")

    add = parser.add_argument_group("loss and batches").add_argument
    add("--mining", choices=MINING, default="batch-all", help="which triplets of a batch count")
    add("--distance", choices=DISTANCES, default="hamming",
        help="between approximate codes: relaxed Hamming (bits), squared or plain Euclidean")
    add("--margin", type=positive_float, help="in units of the distance; bits / 4 when not given")
    add("--average", choices=("active", "valid"), default="active",
        help="mean over the triplets with a loss above zero, or over all valid ones")
    add("--classes-per-batch", type=positive_int, default=8, help="P")
    add("--clips-per-class", type=positive_int, default=4, help="K, 2 or more; a batch is P x K")

    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=positive_int, default=100, help="times through the training list")
    add("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd has Nesterov momentum")
    add("--lr", type=positive_float, default=0.01,
        help="highest learning rate; 0.001 to 0.002 for adamw")
    add("--momentum", type=fraction, default=0.9, help="of sgd")
    add("--weight-decay", type=non_negative_float, default=5e-4,
        help="not applied to biases and batch normalisation; about 0.05 for adamw")
    add("--schedule", choices=("cosine", "step", "constant"), default="cosine",
        help="of the learning rate after the warm-up")
    add("--warmup-epochs", type=non_negative_float, default=5, help="linear warm-up from zero")
    add("--step-epochs", type=positive_int, default=40,
        help="epochs between divisions of the learning rate by 10, for --schedule step")
    add("--clip-gradient", type=non_negative_float, default=5.0,
        help="largest gradient norm; 0 for no limit")
    add("--eval-every", type=positive_int, default=5, help="epochs between validations")
    return parser
# fmt: on


def train_one_epoch(training, loader, to_input, criterion, args, epoch):
    """One pass over the batches. Returns a dict of means for the log.

    Every random number is a function of (seed, step), so that a resumed run repeats a whole one.
    """
    model, optimizer, scaler = training.model.train(), training.optimizer, training.scaler
    device = next(model.parameters()).device
    precision = mixed_precision(device, args.amp)
    generator = torch.Generator(device)
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, active, valid, |u|
    started = time.perf_counter()
    bar = tqdm(loader, desc=f"epoch {epoch + 1}/{args.epochs}", unit="batch", leave=False)
    for i, (clips, labels) in enumerate(bar, start=1):  # (B, T, H, W, 3) uint8, (B,)
        step = epoch * len(loader) + i - 1
        torch.manual_seed(args.seed * 1_000_003 + step)  # for dropout
        generator.manual_seed(args.seed * 1_000_003 + step)  # for augmentation
        clips = to_input(clips.to(device, non_blocking=True), generator=generator)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            codes = model(clips)  # (B, K) in (-1, 1)
        loss, stats = criterion(codes, labels.to(device, non_blocking=True))

        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if args.clip_gradient:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_gradient)
        scaler.step(optimizer)
        scaler.update()
        training.scheduler.step()

        magnitude = codes.detach().abs().mean()
        totals += torch.stack([loss.detach(), stats["active"], stats["valid"], magnitude])
        if i % CHECK_EVERY == 0 or i == len(loader):
            mean_loss = totals[0].item() / i
            if not math.isfinite(mean_loss):
                sys.exit(
                    f"train.py: the loss became {mean_loss} by step {step}; last.pt is from before "
                    "that. Lower --lr or --clip-gradient, or look for damaged clips, and --restart"
                )
            bar.set_postfix(loss=f"{mean_loss:.3f}")
    loss, active, valid, magnitude = totals.tolist()
    seconds = time.perf_counter() - started
    return {
        "train/loss": loss / len(loader),
        "train/active_share": active / max(valid, 1),
        "train/code_magnitude": magnitude / len(loader),
        "train/clips_per_second": len(loader) * len(labels) / seconds,
        "train/learning_rate": training.scheduler.get_last_lr()[0],
    }


def validate(model, val_loader, train_loader, transform, device):
    """Metrics of `evaluate` for the validation clips searched in the training clips."""
    queries = binarize(encode(model, val_loader, transform, device, "validation queries"))
    database = binarize(encode(model, train_loader, transform, device, "validation database"))
    labels = [torch.tensor(loader.dataset.labels) for loader in (val_loader, train_loader)]
    return evaluate(queries, labels[0], database, labels[1])


def settings_of(args):
    """The flags as plain values, with absolute paths, as they go into checkpoints."""
    settings = dict(vars(args))
    for key in ("frames", "splits", "output"):
        settings[key] = os.path.abspath(settings[key])
    return settings


def config_of(args):
    """The flags as a config that repeats the run: without those that name no value."""
    unsaid = ("config", "restart")
    return {k: v for k, v in settings_of(args).items() if v is not None and k not in unsaid}


def build_loaders(args, device):
    """(training, database, validation) DataLoaders and the class names.

    The first gives augmented P x K batches; the others every training and validation clip once,
    with evenly spaced frames.
    """
    splits = Path(args.splits)
    classes = read_classes(splits)
    train_set, val_set = (
        FrameFolders(
            *read_split(splits / f"{part}.txt", len(classes)), args.frames, args.clip_frames
        )
        for part in ("train", "val")
    )
    sampler = PKBatchSampler(
        train_set.labels, args.classes_per_batch, args.clips_per_class, args.seed
    )
    batch_size = args.classes_per_batch * args.clips_per_class
    options = {"num_workers": args.workers, "pin_memory": device.type == "cuda"}
    return (
        DataLoader(
            train_set, batch_sampler=sampler, persistent_workers=args.workers > 0, **options
        ),
        DataLoader(train_set, batch_size, **options),
        DataLoader(val_set, batch_size, **options),
        classes,
    )


def build_transforms(args, normalisation):
    """(what test.py must repeat, training transform, test transform) of uint8 clips."""
    preprocessing = {
        "clip_frames": args.clip_frames,
        "size": args.size,
        "crop": args.crop,
        **normalisation,
    }
    to_train_input = partial(
        augment,
        preprocessing=preprocessing,
        crop_scale=args.crop_scale,
        flip=args.flip,
        colour_jitter=args.colour_jitter,
    )
    return preprocessing, to_train_input, partial(prepare, preprocessing=preprocessing)


def main(args):
    # ==== data ====
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train_loader, database_loader, val_loader, classes = build_loaders(args, device)

    # ==== network ====
    torch.manual_seed(args.seed)
    network = {key: getattr(args, key) for key in NETWORK_SETTINGS}
    model, network, normalisation, source = build_network(network, args.pretrained)
    if source:
        print(f"backbone from {source['file']} ({source['family']})")
    model.to(device).freeze(args.freeze_until, args.freeze_batch_norm)
    preprocessing, to_train_input, to_test_input = build_transforms(args, normalisation)

    # ==== loss and optimiser ====
    criterion = partial(
        MINING[args.mining], margin=args.margin, distance=args.distance, average=args.average
    )
    parts = [(model.backbone, args.backbone_lr_factor), (model.hash, 1.0)]
    optimizer = build_optimizer(parts, args)
    scheduler = build_scheduler(optimizer, args, len(train_loader))
    half = mixed_precision(device, args.amp) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    training = Training(model, optimizer, scheduler, scaler)

    # ==== run folder ====
    run = Path(args.output)
    first_epoch, best_map = 0, -1.0
    if (run / "last.pt").exists() and not args.restart:
        earlier = training.resume(run / "last.pt", settings_of(args), FREE_SETTINGS)
        first_epoch, best_map = earlier["epoch"] + 1, earlier["best_map"]
        print(f"resuming {run} after epoch {first_epoch} of {args.epochs}")
    log = RunLog(run, first_epoch)
    write_text(run / "config.yaml", yaml.safe_dump(config_of(args), sort_keys=False))
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{args.backbone}, {args.bits} bits, {parameters / 1e6:.1f} M parameters on {device}; "
        f"{len(train_loader.dataset)} training and {len(val_loader.dataset)} validation clips of "
        f"{len(classes)} classes"
    )

    # ==== loop ====
    for epoch in range(first_epoch, args.epochs):
        train_loader.batch_sampler.set_epoch(epoch)
        record = {"epoch": epoch}
        record |= train_one_epoch(training, train_loader, to_train_input, criterion, args, epoch)
        last = epoch + 1 == args.epochs
        is_best = last and not len(val_loader)
        if len(val_loader) and (last or (epoch + 1) % args.eval_every == 0):
            metrics = validate(model, val_loader, database_loader, to_test_input, device)
            log.plot({"validation": metrics}, epoch)
            record["val/map"] = metrics["map"]
            is_best = record["val/map"] >= best_map  # of equal ones the one trained longest
            best_map = max(best_map, record["val/map"])
        log.write(record)
        tqdm.write(describe(record, args))
        checkpoint = {
            "network": network,
            "preprocessing": preprocessing,
            "pretrained": source,
            "classes": classes,
            "settings": settings_of(args),
            "epoch": epoch,
            "best_map": best_map,
            "model": model.state_dict(),
        }
        if is_best:  # first, so that a kill between the two repeats this epoch and loses neither
            save_checkpoint(run / "best.pt", checkpoint)
        save_checkpoint(run / "last.pt", {**checkpoint, "training": training.state()})
    log.close()
    print(f"{run / 'best.pt'} and {run / 'last.pt'}: test them with test.py --checkpoint")


def describe(record, args):
    """One line for the terminal about an epoch."""
    line = (
        f"epoch {record['epoch'] + 1:3}/{args.epochs}  loss {record['train/loss']:8.4f}  "
        f"active {record['train/active_share']:6.1%}  "
        f"{record['train/clips_per_second']:6.1f} clips/s"
    )
    return line + (f"  val mAP {record['val/map']:.4f}" if "val/map" in record else "")


if __name__ == "__main__":
    parser = build_parser()
    args = parse_args(parser)
    if args.margin is None and args.distance != "hamming":
        parser.error(f"--distance {args.distance} needs --margin, in its own units")
    args.margin = args.margin or args.bits / 4
    try:
        main(args)
    except (SplitError, CheckpointError, ValueError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped; the same command resumes after the last whole epoch")
