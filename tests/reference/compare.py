"""How two sets of logits are compared and written down; shared by the reference and llama.cpp's opinion."""

import numpy as np

GREEDY_TOKENS = 50
TOP = 32


def two_best(logits):
    """Ids of the two best logits, the lower id first on an exact tie."""
    return [int(i) for i in np.argsort(-logits, kind="stable")[:2]]


def rounded(values):
    return [round(float(v), 5) for v in values]


def distance(logits, reference, probes):
    """How far `logits` are from `reference`: over the whole vocabulary, the probes, the reference's top."""
    diff = logits.astype(np.float64) - reference.astype(np.float64)
    rms = lambda x: float(np.sqrt(np.mean(x * x)))
    top = np.argsort(-reference, kind="stable")[:TOP]
    return {
        "max_abs": round(float(np.abs(diff).max()), 6),
        "rms": round(rms(diff), 6),
        "mean": round(float(diff.mean()), 6),
        "max_abs_probes": round(float(np.abs(diff[probes]).max()), 6),
        "rms_probes": round(rms(diff[probes]), 6),
        "max_abs_reference_top": round(float(np.abs(diff[top]).max()), 6),
    }
