"""A network for videos without labels: pretrained weights, and a hash layer still random."""

from models import build_model
from models.pretrained import fill_backbone, load_pretrained
from utils.errors import UserError

# What the pretrained weights of others were trained on, but for their normalisation. The frames are
# a little larger than the input, of which the centre is used.
CLIPS = {"clip_frames": 16, "frame_size": [128, 171], "size": 112, "crop": 0.875}


def build_label_free(pretrained, bits):
    """(model, what a checkpoint records of it) from pretrained weights, with a random hash layer.

    pretrained: name or path for `models.pretrained.load_pretrained`. A checkpoint of train.py
    brings its own preprocessing. Fit `model.hash` by `models.itq.fit_hash_layer`.
    """
    weights = load_pretrained(pretrained)
    network = {"backbone": weights.backbone, "bits": bits, "width": weights.width}
    if weights.shortcut:
        network["shortcut"] = weights.shortcut
    model = build_model(**network)
    fill_backbone(model.backbone, weights)
    if bits > model.backbone.feature_dim:
        most = model.backbone.feature_dim
        raise UserError(f"--bits {bits}: {pretrained} has {most} features, so at most {most} bits")
    preprocessing = weights.preprocessing or {**CLIPS, **weights.normalisation}
    return model, {
        "network": network,
        "preprocessing": preprocessing,
        "pretrained": weights.source(),
    }
