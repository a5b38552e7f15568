"""Train a 3D network to give clips of the same action nearby hash codes.

    python train.py --config configs/ucf101.yaml
    python train.py --config configs/folder.yaml --frames data/mine/frames \
        --splits data/mine/splits --output runs/mine

The run folder receives last.pt (the newest epoch), best.pt (the best validation mAP),
metrics.jsonl (one line an epoch) and TensorBoard files. The same command again resumes.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import time
from functools import partial
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from datasets.cache import CACHE_LOCATIONS, CachedDataset, build_cache
from datasets.frames import FrameDataset
from datasets.loaders import build_loaders
from datasets.splits import SplitError, check_disjoint, read_classes, read_split
from datasets.transforms import augment, prepare
from losses import DISTANCES, MINING
from models import BACKBONES, build_initial_model
from reports.figures import precision_at_figure, precision_recall_figure
from retrieval.codes import binarize
from retrieval.encode import build_encoder, encode
from retrieval.metrics import evaluate
from utils import distributed
from utils.checkpoint import CheckpointTimer, NotFiniteError, TrainState, save_checkpoint
from utils.config import (
    folder_name,
    fraction,
    new_parser,
    non_negative_float,
    parse_args,
    positive_float,
    positive_int,
    processors,
    random_seed,
    share,
    two_or_more,
    whole_number,
)
from utils.device import make_deterministic, mixed_precision, to_device
from utils.errors import UserError, exit_on_user_error
from utils.files import file_lock, write_text
from utils.optim import build_optimizer, build_scheduler
from utils.run_log import RunLog, log_environment
from utils.terminal import progress, safe_streams

# These may differ when a run is resumed: they do not change what is learnt.
FREE_SETTINGS = {
    *("config", "restart", "workers", "device", "frames", "splits", "output"),
    *("cache", "cache_folder", "cache_frames", "save_minutes", "save_steps", "eval_every"),
}
NETWORK_SETTINGS = ("backbone", "bits", "width", "shortcut", "dropout")
COLLAPSED = 0.02  # standard deviation of a bit over a batch below which all codes are one
COLLAPSE_ADVICE = (
    "warning: the codes have collapsed, clips get nearly the same one. Usual remedies: lower --lr, "
    "longer --warmup-epochs, --mining batch-all rather than batch-hard, more --classes-per-batch"
)
GOES_ON = "the same command goes on there"
CHECK_EVERY = 20  # steps between looks at the loss: each waits for the GPU


class TrainingError(UserError):
    """TrainState cannot go on; the message says what to change."""


# fmt: off
def build_parser():
    parser = new_parser(__doc__)
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("run").add_argument
    add("--config", help="YAML file of flags; what stands on the command line wins")
    add("--frames", required=True, type=folder_name, help="what extract_frames.py wrote")
    add("--splits", required=True, type=folder_name, help="what make_splits.py wrote")
    add("--output", required=True, type=folder_name, help="run folder; an existing one is resumed")
    add("--restart", action="store_true", help="begin anew in an existing run folder")
    add("--seed", type=random_seed, default=0, help="of weights, batches and augmentation")
    add("--device", help="cpu, cuda, cuda:1 or mps (Apple); default: cuda where there is one")
    add("--workers", type=whole_number, default=min(8, processors()),
        help="processes that read frames, for each process that trains")
    add("--cache", choices=CACHE_LOCATIONS, default="none",
        help="decode all clips once and keep them: in a file, in memory, or on the GPU")
    add("--cache-frames", type=positive_int, default=32, help="frames kept of each video")
    add("--cache-folder", help="folder of cache files; .cache in --frames when not given")
    add("--amp", action=switch, default=True, help="mixed precision on GPUs; CPUs use float32")
    add("--compile", action=switch, default=False, help="torch.compile; slow start, faster steps")
    add("--sync-batch-norm", action=switch, default=False,
        help="batch normalisation over the GPUs of a torchrun, for few clips on each")
    add("--deterministic", action=switch, default=False,
        help="repeat runs bit for bit where PyTorch can; the README tells where it cannot on GPUs")
    add("--save-minutes", type=non_negative_float, default=10,
        help="checkpoint within epochs this often, besides after each; 0 for never")
    add("--save-steps", type=whole_number, default=0, help="likewise, in steps")

    add = parser.add_argument_group("clip and augmentation").add_argument
    add("--clip-frames", type=positive_int, default=16, help="frames a clip; 16 or 32 are usual")
    add("--size", type=positive_int, default=112, help="side of the network's input, pixels")
    add("--crop", type=share, default=0.875,
        help="side of the central test crop over the frame's shorter side; 0.875 is 112 of 128")
    add("--crop-scale", type=share, nargs=2, default=[0.7, 1.0], metavar=("LEAST", "MOST"),
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
        "README), a checkpoint of train.py, or none; it decides mean, range and channel order")
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
    add("--margin", type=positive_float, help="in units of the distance; bits / 8 when not given")
    add("--average", choices=("active", "valid"), default="active",
        help="mean over the triplets with a loss above zero, or over all valid ones")
    add("--batches", choices=("balanced", "random"), default="balanced",
        help="P classes with K clips each, or P x K clips at random")
    add("--classes-per-batch", type=two_or_more, default=8, help="P, 2 or more")
    add("--clips-per-class", type=two_or_more, default=4, help="K, 2 or more; a batch is P x K")

    add = parser.add_argument_group("optim").add_argument
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


def has_diverged(what, step, args):
    """The TrainingError that says what became infinite or NaN, and what was kept."""
    last = Path(args.output) / "last.pt"
    kept = f"{last} is from before that" if last.exists() else "no checkpoint was written"
    return TrainingError(
        f"{what} by step {step}; {kept}. Lower --lr or --clip-gradient, or look for damaged clips, "
        "and --restart"
    )


def check_loss(totals, step, args):
    """Raise TrainingError when the sum of losses is no number; this waits for a GPU."""
    if not math.isfinite(totals[0].item()):
        raise has_diverged(f"the loss became {totals[0].item()}", step, args)


def state_of(training, step, args):
    """The state of a run for last.pt. Raises TrainingError where it is infinite or NaN."""
    try:
        return training.state()
    except NotFiniteError as error:
        raise has_diverged(str(error), step, args) from error


def train_one_epoch(training, network, loader, to_input, criterion, args, after_step):
    """The batches of the epoch that are left. Returns a dict of means over all of them.

    Every random number is a function of (seed, step, rank), so that a resumed run repeats a whole
    one. network: training.model, or what wraps it. after_step: called with the number of steps.
    """
    device = next(network.parameters()).device
    loss_device = torch.device("cpu") if device.type == "mps" else device  # Apple: no float64
    precision = mixed_precision(device, args.amp)
    generator = torch.Generator(device)
    batches = len(loader)
    totals = torch.tensor(training.totals or [0.0] * 5, dtype=torch.float64, device=loss_device)
    bar = progress(loader, f"epoch {training.epoch + 1}/{args.epochs}", batches, "batch",
                   leave=False, initial=training.batch)  # fmt: skip
    network.train()
    started, seen, rates = time.perf_counter(), 0, {}
    for clips, labels in bar:  # (B, T, H, W, 3) uint8, (B,)
        step = training.epoch * batches + training.batch
        seed = (args.seed * 1_000_003 + step) * distributed.world_size() + distributed.rank()
        torch.manual_seed(2**63 + seed)  # for dropout
        generator.manual_seed(seed)  # for augmentation, another stream of random numbers
        clips = to_input(clips.to(device, non_blocking=True), generator=generator)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            codes = network(clips)  # (B, K) in (-1, 1)
        labels = labels.to(loss_device, non_blocking=True)
        codes, labels = distributed.gather_batch(codes.float().to(loss_device), labels)
        loss, stats = criterion(codes, labels)

        training.optimizer.zero_grad(set_to_none=True)
        training.scaler.scale(loss * distributed.world_size()).backward()
        training.scaler.unscale_(training.optimizer)
        if args.clip_gradient:
            torch.nn.utils.clip_grad_norm_(network.parameters(), args.clip_gradient)
        training.scaler.step(training.optimizer)
        training.scaler.update()
        rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
        training.scheduler.step()
        distributed.average_statistics(network)

        magnitude, spread = codes.detach().abs().mean(), codes.detach().std(dim=0).mean()
        totals += torch.stack([loss.detach(), stats["active"], stats["valid"], magnitude, spread])
        training.batch += 1
        seen += len(labels)
        if training.batch % CHECK_EVERY == 0 or training.batch == batches:
            check_loss(totals, step + 1, args)
            bar.set_postfix(loss=f"{totals[0].item() / training.batch:.3f}")
        after_step(step + 1, totals)
    training.totals = tuple(totals.tolist())
    loss, active, valid, magnitude, spread = training.totals
    return {
        "train/loss": loss / batches,
        "train/active_share": active / max(valid, 1),
        "train/code_magnitude": magnitude / batches,
        "train/code_spread": spread / batches,
        "train/clips_per_second": seen / (time.perf_counter() - started),
        **{f"train/learning_rate_{name}": rate for name, rate in rates.items()},
    }


def validate(model, loaders, to_input, device, amp):
    """Metrics of `evaluate` for validation clips searched in training clips: two loaders."""
    encoder = build_encoder(model, to_input, device, amp)
    codes, labels = [], []
    for loader in loaders:
        rows = encode(encoder, loader, "validating")
        codes.append(binarize(distributed.gather_rows(rows, len(loader.dataset))))
        labels.append(torch.tensor(loader.dataset.labels))
    return evaluate(codes[0], labels[0], codes[1], labels[1])


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


def open_sets(args, device):
    """The training and the validation set, from frame folders or the cache, and the classes."""
    splits = Path(args.splits)
    classes = read_classes(splits)
    sets = []
    for part in ("train", "val"):
        names, labels = read_split(splits / f"{part}.txt", len(classes))
        data = FrameDataset(names, labels, args.frames, args.clip_frames)
        stored = data.extracted if args.cache == "none" else args.cache_frames
        if stored and stored < args.clip_frames:
            where = "extract_frames.py --num-frames" if args.cache == "none" else "--cache-frames"
            raise SplitError(f"--clip-frames {args.clip_frames}: only {stored} a video ({where})")
        if names and args.cache != "none":
            folder = args.cache_folder or Path(args.frames) / ".cache"
            path = build_cache(data, args.cache_frames, folder, args.workers)
            data = CachedDataset(data, path, args.cache, device)
        sets.append(data)
    if not len(sets[0]):
        raise SplitError(f"{splits}/train.txt: names no videos")
    check_disjoint(splits, sets[0].names, sets[1].names)
    return *sets, classes


def build_transforms(args, frame_size, normalisation):
    """(what test.py and search.py must repeat, training transform, test transform) of clips."""
    preprocessing = {
        "clip_frames": args.clip_frames,
        "frame_size": list(frame_size[:2]),
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


@contextlib.contextmanager
def lock_run(args):
    """Keep other trainings out of the run folder; two would overwrite each other's checkpoints."""
    lock = Path(args.output) / ".lock"
    with file_lock(lock) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        yield


def describe_data(train_set, val_set, args):
    """What the batches depend on beside the flags: a dict that resuming compares."""
    lists = json.dumps([[data.names, data.labels] for data in (train_set, val_set)])
    extraction = train_set.extraction or {"num_frames": None}
    is_cached = args.cache != "none"
    return {
        "lists": hashlib.sha256(lists.encode()).hexdigest()[:12],
        "frame size": list(train_set.frame_size[:2]),
        "extraction": train_set.extraction,
        "frames per video": args.cache_frames if is_cached else extraction["num_frames"],
        "processes": distributed.world_size(),
    }


def open_run(run, training, settings, data, args, device):
    """Prepare the run folder and go on from its newest whole checkpoint, unless --restart.

    Returns the RunLog on the main process, else None.
    """
    last, previous, best = (run / f"{name}.pt" for name in ("last", "previous", "best"))
    if distributed.is_main():
        for path in [*run.glob(".*.partial"), *[last, previous, best] * args.restart]:
            path.unlink(missing_ok=True)  # else a new run could end with an old one's best
    if resumable := [path for path in (last, previous) if path.exists() and not args.restart]:
        complaint = training.resume(resumable, settings, data, FREE_SETTINGS)
        if complaint:
            tell(f"{complaint}; going on from {previous} instead")
            last.unlink(missing_ok=True)  # or it would become the next previous.pt
        tell(f"resuming {run} at epoch {training.epoch + 1}, batch {training.batch + 1}")
    if not distributed.is_main():
        return None
    log = RunLog(run, training.epoch)
    write_text(run / "config.yaml", yaml.safe_dump(config_of(args), sort_keys=False))
    log_environment(run / "environment.jsonl", device, distributed.world_size())
    return log


def main(args):
    # ==== data ====
    device = distributed.start(args.device)
    train_set, val_set, classes = open_sets(args, device)
    train_loader, *eval_loaders = build_loaders(
        train_set, val_set, args, distributed.rank(), distributed.world_size()
    )

    # ==== network ====
    torch.manual_seed(args.seed)
    settings = {key: getattr(args, key) for key in NETWORK_SETTINGS}
    model, settings, normalisation, source = build_initial_model(settings, args.pretrained)
    if args.sync_batch_norm:
        if device.type != "cuda":
            raise UserError("--sync-batch-norm: PyTorch has it for GPUs only")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.freeze(args.freeze_until, args.freeze_batch_norm)
    preprocessing, to_train_input, to_test_input = build_transforms(
        args, train_set.frame_size, normalisation
    )
    to_device(model, device)
    network = distributed.data_parallel(model)
    network = torch.compile(network) if args.compile else network

    # ==== loss and optimiser ====
    criterion = partial(
        MINING[args.mining], margin=args.margin, distance=args.distance, average=args.average
    )
    modules = {"backbone": (model.backbone, args.backbone_lr_factor), "hash": (model.hash, 1.0)}
    optimizer = build_optimizer(modules, args)
    scheduler = build_scheduler(optimizer, args, len(train_loader))
    half = mixed_precision(device, args.amp) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    training = TrainState(model, optimizer, scheduler, scaler)

    # ==== run folder ====
    run = Path(args.output)
    settings_now, data = settings_of(args), describe_data(train_set, val_set, args)
    log = open_run(run, training, settings_now, data, args, device)
    if source:
        tell(f"backbone from {source['file']} ({source['family']})")
    parameters = sum(p.numel() for p in model.parameters())
    tell(
        f"{args.backbone}, {args.bits} bits, {parameters / 1e6:.1f} M parameters on {device}; "
        f"{len(train_set)} training and {len(val_set)} validation clips of {len(classes)} classes"
    )
    timer = CheckpointTimer(args.save_minutes, args.save_steps)
    about = {
        "network": settings,
        "preprocessing": preprocessing,
        "pretrained": source,
        "classes": classes,
        "settings": settings_now,
        "data": data,
        "videos": {"train": train_set.names, "val": val_set.names},
    }

    def save(name, **more):
        if distributed.is_main():
            content = {**about, "epoch": training.epoch, "model": model.state_dict(), **more}
            save_checkpoint(run / name, content, run / "previous.pt" if name == "last.pt" else None)

    def after_step(step, totals):
        save_now, leave = timer.check(step)
        if save_now:
            check_loss(totals, step, args)
            training.totals = tuple(totals.tolist())
            save("last.pt", training=state_of(training, step, args))
        if leave:
            distributed.barrier()  # the others must not leave while the first one saves
            raise distributed.Stopped(f"train.py: stopped after step {step}; {GOES_ON}")

    # ==== loop ====
    batches = len(train_loader)
    while training.epoch < args.epochs:
        train_loader.batch_sampler.set_position(training.epoch, training.batch)
        record = {"epoch": training.epoch}
        record |= train_one_epoch(
            training, network, train_loader, to_train_input, criterion, args, after_step
        )
        state = state_of(training, (training.epoch + 1) * batches, args)
        is_last = training.epoch + 1 == args.epochs
        is_best = is_last and not len(val_set)
        if len(val_set) and (is_last or (training.epoch + 1) % args.eval_every == 0):
            try:
                with timer.leaving_at_once():
                    metrics = validate(model, eval_loaders, to_test_input, device, args.amp)
            except distributed.Stopped:
                save("last.pt", training=state)
                raise distributed.Stopped(
                    f"train.py: stopped before validation; {GOES_ON}"
                ) from None
            record["val/map"] = metrics["map"]
            is_best = metrics["map"] >= training.best_map  # of equal ones the one trained longest
            training.best_map = max(training.best_map, metrics["map"])
            if log:
                curves = {"validation": metrics}
                log.add_figure(
                    "val/precision_recall", precision_recall_figure(curves), record["epoch"]
                )
                log.add_figure("val/precision_at", precision_at_figure(curves), record["epoch"])
        training.epoch, training.batch, training.totals = training.epoch + 1, 0, ()
        if log:
            log.write(record)
        tell(describe(record, args))
        if record["train/code_spread"] < COLLAPSED:
            tell(COLLAPSE_ADVICE)
        if is_best:  # first, so that a kill between the two repeats this epoch and loses neither
            save("best.pt", val_map=training.best_map)
        save("last.pt", training=training.state())
    tell(f"{run / 'best.pt'} and {run / 'last.pt'}: test them with test.py --checkpoint")


def tell(line):
    """Print from one process, above the progress bar."""
    if distributed.is_main():
        tqdm.write(line)


def describe(record, args):
    """One line for the terminal about an epoch."""
    line = (
        f"epoch {record['epoch'] + 1:3}/{args.epochs}  loss {record['train/loss']:8.4f}  "
        f"active {record['train/active_share']:6.1%}  "
        f"{record['train/clips_per_second']:6.1f} clips/s"
    )
    return line + (f"  val mAP {record['val/map']:.4f}" if "val/map" in record else "")


if __name__ == "__main__":
    with safe_streams("train.py"):
        parser = build_parser()
        args = parse_args(parser)
        if args.crop_scale[0] > args.crop_scale[1]:
            parser.error("--crop-scale: the least is above the most")
        if args.margin is None and args.distance != "hamming":
            parser.error(f"--distance {args.distance} needs --margin, in its own units")
        args.margin = args.margin or args.bits / 8
        if args.deterministic:
            make_deterministic()
        else:
            torch.backends.cudnn.benchmark = True
        to_lower = "--classes-per-batch, --clip-frames, --size or --width"
        with distributed.together(), exit_on_user_error("train.py", to_lower), lock_run(args):
            main(args)
