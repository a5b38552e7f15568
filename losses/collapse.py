"""Collapse: a training that does not get anywhere, and what to change."""

PATIENCE = 10  # epochs, after the warm-up: a training that works needs fewer to begin
EQUAL = 0.02  # standard deviation of a bit over a batch below which all codes are equal
SMALL_BATCH = 30  # clips; with two classes, 2 x 5 clips collapse and 2 x 15 learn


def find_collapse(spread, active_fraction, loss, margin):
    """What shows that an epoch learnt nothing: a few words, or None.

    spread: mean standard deviation of a bit over a batch. active_fraction: active / valid triplets.
    loss: mean over the triplets; at the margin, positives are no nearer than negatives.
    """
    if spread < EQUAL:
        return "nearly all clips have the same code"
    if active_fraction > 0.999 and abs(loss - margin) < 0.03 * margin:
        return f"all triplets are active and the loss stays at the margin, {margin:g}"
    return None


def advise(args):
    """The flags that are worth changing after a collapse, for the P, K and loss of a run: str."""
    classes, clips = args.classes_per_batch, args.clips_per_class
    remedies = []
    if args.mining == "batch-hard":
        remedies.append("--mining batch-all")
    if classes * clips < SMALL_BATCH:
        remedies.append(f"--clips-per-class {-(-SMALL_BATCH // classes)}")
    remedies += [f"--lr {args.lr / 3:.1g}", f"--warmup-epochs {2 * max(args.warmup_epochs, 5):g}"]
    return ", then ".join(remedies)
