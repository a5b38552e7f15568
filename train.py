r"""Train a 3D network that gives videos of the same action similar hash codes.

    python train.py --config configs/ucf101.yaml
    python train.py --config configs/folder.yaml --frames data/mine/frames \
        --splits data/mine/splits --output runs/mine
    python train.py --features features.npz --output runs/features

The run folder receives last.pt (the newest state), best.pt (the best
validation mAP), metrics.jsonl (a line per epoch) and TensorBoard files. The
same command resumes an interrupted run.
"""

from utils.errors import die_on_ctrl_c

if __name__ == "__main__":  # imports take seconds
    die_on_ctrl_c()

from configs.flags import FREE_TO_CHANGE, MEMORY_FLAGS, parse_train_flags

if __name__ == "__main__":  # before PyTorch is imported, so that --help is instant
    ARGS = parse_train_flags(__doc__)

import contextlib
import math
import os
import time
from functools import partial
from pathlib import Path

import torch
import yaml

from datasets.frame_folders import median_seconds
from datasets.loaders import ClipLoader, build_loaders
from datasets.training import build_datasets, build_transforms, describe_data, fit_batches
from losses import HashLoss
from losses.collapse import PATIENCE, advise, find_collapse
from models import FEATURES, build_initial_model, build_model, describe_normalisation
from models.itq import MOST_ITEMS, fit_hash_layer
from reports.environment import log_environment
from reports.examples import draw_examples, pick_examples
from reports.run_log import Clock, RunLog, describe_epoch, describe_run, summarise
from retrieval.codes import binarize
from retrieval.encode import build_encoder, encode
from retrieval.hamming import count_nearest
from retrieval.measure import SIDES, find_nearest, measure
from utils import distributed
from utils.device import mixed_precision, set_deterministic, set_threads, to_device
from utils.errors import UserError, exit_on_user_error
from utils.files import folder_lock, write_text
from utils.optim import build_optimizer, build_scheduler
from utils.terminal import print_main, progress, safe_streams, warn
from utils.train_state import (
    NUM_TOTALS,
    CheckpointTimer,
    NotFiniteError,
    RunCheckpoints,
    TrainState,
)

NETWORK_FLAGS = ("backbone", "bits", "width", "shortcut", "dropout")
TOP_R = 100  # of the mAP@R of validation
PICTURES = 6  # queries in the picture of TensorBoard, and results of each
CHECK_EVERY = 20  # steps between checks of the loss, since each waits for the GPU


class TrainingError(UserError):
    """Training cannot continue; the message says what to change."""


# ==== an epoch ====


def train_step(state, ddp_model, clips, labels, args):
    """One optimiser step on clips (B, 3, T, S, S) and labels (B,).

    Returns (6,) float64: loss, sum over all triplets, active triplets, valid triplets, mean |code|,
    mean deviation of a bit over the batch.
    """
    device = clips.device
    precision = mixed_precision(device, args.amp)
    with torch.autocast(device.type, precision, enabled=precision is not None):
        codes = ddp_model(clips)  # (B, K) in (-1, 1)
    codes, labels = distributed.gather_batch(codes.float().to(labels.device), labels)
    loss, stats = state.criterion(codes, labels)

    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss * distributed.world_size()).backward()
    state.scaler.unscale_(state.optimizer)
    if args.clip_gradient:
        torch.nn.utils.clip_grad_norm_(ddp_model.parameters(), args.clip_gradient)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    distributed.average_statistics(ddp_model)

    magnitude, spread = codes.detach().abs().mean(), codes.detach().std(dim=0).mean()
    triplets = stats["sum"], stats["active"], stats["valid"]
    return torch.stack([loss.detach(), *triplets, magnitude, spread])


def find_loss_device(device):
    """Where the loss is computed: on the CPU for GPUs of Apple, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def seed_step(seed, step, generator):
    """Make all random numbers a function of (seed, step, rank): a resumed run repeats them."""
    seed = (seed * 1_000_003 + step) * distributed.world_size() + distributed.rank()
    torch.manual_seed(2**63 + seed)  # for dropout
    generator.manual_seed(seed)  # for augmentation: a separate stream of random numbers


def train_one_epoch(state, ddp_model, loader, transform, checkpoints, timer, clock, args):
    """Train on the remaining batches of an epoch; save and stop where `timer` says so.

    Returns {name: mean over the epoch}. Raises TrainingError if training diverges, and
    distributed.Stopped after a signal.
    """
    device = next(ddp_model.parameters()).device
    loss_device = find_loss_device(device)
    generator = torch.Generator(device)
    totals = state.totals or (0.0,) * NUM_TOTALS
    totals = torch.tensor(totals, dtype=torch.float64, device=loss_device)
    title, batches = f"epoch {state.epoch + 1}/{args.epochs}", len(loader)
    bar = progress(loader, title, batches, "batch", leave=False, initial=state.batch)
    ddp_model.train()
    started, first_batch, rates = time.perf_counter(), state.batch, {}
    for clips, labels in bar:  # (B, T, H, W, 3) uint8 or features (B, D), (B,)
        step = state.epoch * batches + state.batch
        seed_step(args.seed, step, generator)
        clips = transform(clips.to(device, non_blocking=True), generator=generator)
        labels = labels.to(loss_device, non_blocking=True)
        totals += train_step(state, ddp_model, clips, labels, args)
        rates = {group["name"]: group["lr"] for group in state.optimizer.param_groups}
        state.scheduler.step()
        state.batch += 1

        save_now, stop_now = timer.check(step + 1)
        if save_now or state.batch % CHECK_EVERY == 0 or state.batch == batches:
            state.totals = tuple(totals.tolist())  # waits for the GPU
            check_loss(state.totals[0], step + 1, args)
            clock.announce(step + 1)
            bar.set_postfix(loss=f"{state.totals[0] / state.batch:.3f}")
        if save_now:
            check_weights(state, step + 1, args)
            checkpoints.save_last()
        if stop_now:
            distributed.barrier()  # no process may end while the main one saves
            raise distributed.Stopped(f"train.py: stopped after step {step + 1}; rerun to resume")
    clips_seen = (state.batch - first_batch) * args.classes_per_batch * args.clips_per_class
    return summarise(state.totals, batches, rates, clips_seen / (time.perf_counter() - started))


def watch_collapse(record, epochs_before, args):
    """Warn of a collapse, or raise TrainingError; returns for how many epochs it has lasted.

    record: of the epoch. epochs_before: for how many epochs before it the collapse had lasted.
    """
    names = "code_spread", "active_fraction", "loss_all"
    sign = find_collapse(*(record[f"train/{name}"] for name in names), args.margin)
    if sign is None or record["epoch"] <= args.warmup_epochs:
        return 0
    epochs = epochs_before + 1
    if epochs % PATIENCE == 0 or record["epoch"] == args.epochs:
        message = f"the codes have collapsed: {sign}, for {epochs} epochs; try {advise(args)}"
        if args.stop_when_collapsed and epochs >= PATIENCE:
            raise TrainingError(f"{message}; then rerun with --restart")
        warn(message)
    return epochs


def check_loss(total, step, args):
    """Raise TrainingError if the sum of losses is not finite."""
    if not math.isfinite(total):
        raise has_diverged(f"the loss became {total}", step, args)


def check_weights(state, step, args):
    """Raise TrainingError if the weights or the state of the optimiser are not finite."""
    try:
        state.check_finite()
    except NotFiniteError as error:
        raise has_diverged(str(error), step, args) from error


def has_diverged(what, step, args):
    """The TrainingError that says what became infinite or NaN, and which checkpoint is intact."""
    last = Path(args.output) / "last.pt"
    kept = f"{last} was saved before that" if last.exists() else "no checkpoint was saved"
    return TrainingError(
        f"{what} by step {step}; {kept}. Lower --lr or --clip-gradient, or look for damaged clips, "
        "then rerun with --restart"
    )


def validate(model, eval_loaders, transform, device, args):
    """The `Tested` of validation clips as queries and training clips as the database."""
    encoder = build_encoder(model, transform, device, args.amp)
    items = {}
    for side, loader in zip(SIDES, eval_loaders, strict=True):
        rows = encode(encoder, loader, "validating")
        items[f"{side}_codes"] = binarize(distributed.gather_rows(rows, len(loader.dataset)))
        items[f"{side}_labels"] = torch.tensor(loader.dataset.labels)
    return measure(items, "cpu", TOP_R, ())


def count_neighbours(tested):
    """The number of validation clips by the distance of their nearest training clip: (K+1,)."""
    return count_nearest(*(tested.items[f"{side}_codes"] for side in SIDES)).tolist()


# ==== the run folder ====


def run_settings(args):
    """The flags as plain values, with absolute paths, as checkpoints hold them."""
    paths = {key: getattr(args, key) for key in ("frames", "splits", "features", "output")}
    absolute = {key: path and os.path.abspath(path) for key, path in paths.items()}
    return {key: value for key, value in vars(args).items() if key != "given"} | absolute


def will_resume(args):
    """Whether the run folder has a state that training goes on from."""
    names = ("last.pt", "previous.pt")
    return not args.restart and any((Path(args.output) / name).exists() for name in names)


def open_run(checkpoints, device, args):
    """Prepare the run folder, and resume the run that is there, unless --restart.

    Returns a RunLog in the main process, None in the others.
    """
    if distributed.is_main():
        checkpoints.clean(restart=args.restart)
    problem = None if args.restart else checkpoints.resume(FREE_TO_CHANGE)
    state, folder = checkpoints.state, checkpoints.folder
    if problem:
        print_main(f"{problem}; resuming from {folder / 'previous.pt'} instead")
    if state.epoch or state.batch:
        print_main(f"resuming {folder} at epoch {state.epoch + 1}, batch {state.batch + 1}")
    if not distributed.is_main():
        return None
    log = RunLog(folder, state.epoch)
    config = {key: value for key, value in run_settings(args).items() if value not in (None, [])}
    config = {key: value for key, value in config.items() if key not in ("config", "restart")}
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    log_environment(folder / "environment.jsonl", device, distributed.world_size())
    return log


def describe_training(train_set, val_set, args):
    """What checkpoints hold about the flags and the data: a dict."""
    return {
        "settings": run_settings(args),
        "data": describe_data(train_set, val_set, args),
        "videos": {"train": train_set.names, "val": val_set.names},
        "clip_seconds": args.frames and median_seconds(args.frames, train_set.names),
    }


def lock_run(args):
    """Keep other trainings out of the run folder: two would overwrite each other's checkpoints."""
    if os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return folder_lock(args.output)


def start_clock(state, batches, log, args):
    """The Clock of a run whose epochs have `batches` steps."""
    earlier = log.seconds if log else 0.0
    return Clock(state.epoch * batches + state.batch, args.epochs * batches, earlier)


def log_epoch(log, record, tested, is_best, clock, datasets, args):
    """Write an epoch to metrics.jsonl, TensorBoard and the terminal.

    tested: the `Tested` of the validation, or None. datasets: (validation set, training set, class
    names).
    """
    if tested:
        record |= {f"val/{key}": tested.metrics[key] for key in ("map", "precision_at_10")}
    if log:
        log.write(record)
    if log and tested:
        picture = None if args.features else draw_validation(tested, datasets)
        log.show_validation(record["epoch"], tested.metrics, picture)
    print_main(describe_epoch(record, args.epochs, clock.remaining(record["step"]), is_best))


def draw_validation(tested, datasets):
    """A figure of some validation queries and what they find."""
    find = partial(find_nearest, tested, count=PICTURES)
    examples = pick_examples(tested.average_precision, PICTURES, find)
    return draw_examples(examples, *datasets)


def describe_end(folder, val_set):
    """The last line for the terminal: the checkpoints, and what to run next."""
    last, best = folder / "last.pt", folder / "best.pt"
    same = "" if len(val_set) else " (the same: there is no validation list)"
    return f"saved {best} and {last}{same}; next: python test.py --checkpoint {best}"


# ==== main ====


def prepare_feature_model(features, args, device):
    """As `prepare_model`, for features (N, D): no backbone, and no normalisation of frames."""
    torch.manual_seed(args.seed)
    network = {"backbone": FEATURES, "bits": args.bits, "dropout": args.dropout}
    network["feature_dim"] = features.shape[1]
    model = build_model(**network)
    model.backbone.fit(features)
    to_device(model, device)
    return model, {"network": network, "pretrained": None}, None


def prepare_model(train_set, args, device):
    """(model on `device`, what checkpoints hold about it, what the input must be normalised by)."""
    if args.features:
        return prepare_feature_model(train_set.features, args, device)
    torch.manual_seed(args.seed)
    settings = {key: getattr(args, key) for key in NETWORK_FLAGS}
    model, settings, normalisation, source = build_initial_model(
        settings, args.pretrained, args.normalisation, args.input
    )
    if args.sync_batch_norm:
        if device.type != "cuda":
            raise UserError("--sync-batch-norm: PyTorch has it for GPUs only")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.freeze(args.freeze_until, args.freeze_batch_norm)
    to_device(model, device)
    if source:
        origin = f"{source['family']}, SHA-256 {source['sha256']}"
        print_main(f"backbone from {source['file']} ({origin})")
    if source or args.normalisation:
        print_main(f"normalisation {describe_normalisation(normalisation)}")
    return model, {"network": settings, "pretrained": source}, normalisation


def init_hash_layer(model, train_set, transform, device, args):
    """Fit the hash layer to features of the training videos, without their labels.

    Only in the main process, whose weights `wrap_model` copies to the others.
    """
    if will_resume(args) or not distributed.is_main():
        return
    step = math.ceil(len(train_set) / MOST_ITEMS)
    options = {"batch_size": args.classes_per_batch * args.clips_per_class}
    loader = ClipLoader(train_set, args.workers, sampler=range(0, len(train_set), step), **options)
    encoder = build_encoder(model.backbone, transform, device, args.amp)
    fit_hash_layer(model.hash, encode(encoder, loader, "features for --init-hash"), args.seed)


def wrap_model(model, args):
    """The model to call in training: parallel over the processes, compiled with --compile."""
    ddp_model = distributed.data_parallel(model)
    return torch.compile(ddp_model) if args.compile else ddp_model


def build_criterion(num_classes, device, args):
    """The HashLoss of the flags; what it learns is the same in all processes."""
    torch.manual_seed(args.seed)
    triplets = args.margin, args.mining, args.distance, args.average
    criterion = HashLoss(args.bits, num_classes, *triplets, args.classification, args.nested_bits)
    criterion.to(find_loss_device(device))
    for parameter in criterion.parameters():
        # Each process has its whole gradient, of a loss that is multiplied by their number.
        parameter.register_hook(lambda gradient: gradient / distributed.world_size())
    return criterion


def build_train_state(model, criterion, steps_per_epoch, device, args):
    """The TrainState with optimiser, learning-rate schedule and gradient scaler."""
    modules = {"backbone": (model.backbone, args.backbone_lr_factor), "hash": (model.hash, 1.0)}
    modules |= {"criterion": (criterion, 1.0)} if list(criterion.parameters()) else {}
    optimizer = build_optimizer(modules, args)
    scheduler = build_scheduler(optimizer, args, steps_per_epoch)
    is_half = mixed_precision(device, args.amp) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=is_half)
    return TrainState(model, optimizer, scheduler, scaler, criterion=criterion)


def main(args):
    device = distributed.start(args.device)
    set_threads(args.threads)
    set_deterministic(args.deterministic)

    # ==== data ====
    train_set, val_set, classes = build_datasets(args, device)
    fit_batches(args, train_set.labels)
    world = distributed.rank(), distributed.world_size()
    train_loader, *eval_loaders = build_loaders(train_set, val_set, args, *world)

    # ==== model ====
    model, metadata, normalisation = prepare_model(train_set, args, device)
    preprocessing, train_transform, test_transform = build_transforms(
        args, train_set, normalisation
    )
    if args.init_hash == "itq":
        init_hash_layer(model, train_set, test_transform, device, args)
    ddp_model = wrap_model(model, args)

    # ==== loss and optimiser ====
    criterion = build_criterion(len(classes), device, args)
    state = build_train_state(model, criterion, len(train_loader), device, args)

    # ==== run folder ====
    metadata |= {"preprocessing": preprocessing, "classes": classes}
    metadata |= describe_training(train_set, val_set, args)
    checkpoints = RunCheckpoints(args.output, state, metadata)
    log = open_run(checkpoints, device, args)
    timer = CheckpointTimer(args.save_minutes, args.save_steps)
    print_main(describe_run(model, device, train_set, val_set, classes, args))
    clock = start_clock(state, len(train_loader), log, args)

    # ==== loop ====
    collapsed = 0  # epochs in a row
    while state.epoch < args.epochs:
        train_loader.batch_sampler.set_position(state.epoch, state.batch)
        step = (state.epoch + 1) * len(train_loader)
        record = {"epoch": state.epoch + 1, "step": step}
        record |= train_one_epoch(
            state, ddp_model, train_loader, train_transform, checkpoints, timer, clock, args
        )
        check_weights(state, step, args)
        collapsed = watch_collapse(record, collapsed, args)
        is_last = state.epoch + 1 == args.epochs
        is_best, tested = is_last and not len(val_set), None
        if len(val_set) and (is_last or (state.epoch + 1) % args.eval_every == 0):
            with timer.saving_on_signal(checkpoints):
                tested = validate(model, eval_loaders, test_transform, device, args)
            is_best = tested.metrics["map"] >= state.best_map  # if equal, the one trained longer
            state.best_map = max(state.best_map, tested.metrics["map"])
        state.epoch, state.batch, state.totals = state.epoch + 1, 0, ()
        record["seconds"] = clock.seconds()
        log_epoch(log, record, tested, is_best, clock, (val_set, train_set, classes), args)
        if is_best:  # before last.pt: a kill between the two repeats this epoch and loses neither
            checkpoints.save_best(tested and count_neighbours(tested))
        checkpoints.save_last()
    print_main(describe_end(checkpoints.folder, val_set))


if __name__ == "__main__":
    with (
        safe_streams("train.py"),
        distributed.together(),
        exit_on_user_error("train.py", MEMORY_FLAGS),
        lock_run(ARGS),
    ):
        main(ARGS)
