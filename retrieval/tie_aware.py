"""Ranking metrics in closed form from two histograms a query: exact under ties.

Items at one Hamming distance are tied and no order among them is the right one. With `all[q, d]`
items and `relevant[q, d]` relevant ones at distance d of query q, every metric below is given
    "expected"     as its mean over uniformly random order within each tie,
    "optimistic"   for the order that puts the relevant items of each tie first,
    "pessimistic"  for the order that puts them last.

Sources: F. McSherry, M. Najork, "Computing information retrieval performance measures efficiently
in the presence of tied scores", ECIR 2008; K. He, F. Cakir, S. A. Bargal, S. Sclaroff, "Hashing as
tie-aware learning to rank", CVPR 2018, https://arxiv.org/abs/1705.08562 (full AP). The formulas for
a cut at rank R and for AP over the relevant found are derived in the functions.

Inside the formulas: n items and r relevant ones in a tie, `before` items and `found` relevant ones
at smaller distances, m of the tie's n ranks inside the cut. Arithmetic is float64.
"""

import torch

ORDERS = {"expected": "", "optimistic": "_optimistic", "pessimistic": "_pessimistic"}  # suffixes
CELLS = 2**22  # bound on the elements of one temporary in `precision_over_found`


class Ties:
    """The ties of Q queries, from histograms `all` and `relevant`, both (Q, bins) int64.

    `all`, `relevant` and their running sums `all_until`, `relevant_until` (items at distance <= d)
    are float64 (Q, bins). For the (query, distance) pairs that hold a relevant item, the only ones
    that add to average precision, `n`, `r`, `before`, `found` are flat float64 vectors, and `query`
    is the pair's query (int64). `harmonic[i]` is the harmonic number H(i), less a constant that
    cancels in differences; digamma, since a running sum over a million items would lose digits.
    `log_factorial[i]` is log i!.
    """

    def __init__(self, all, relevant):
        self.all, self.relevant = all.double(), relevant.double()
        self.all_until, self.relevant_until = self.all.cumsum(1), self.relevant.cumsum(1)
        self.database = int(self.all_until[:, -1].max())
        ranks = torch.arange(1, self.database + 2, dtype=torch.float64, device=all.device)
        self.harmonic, self.log_factorial = torch.digamma(ranks), torch.lgamma(ranks)
        pairs = relevant.flatten().nonzero()[:, 0]
        self.query = pairs // all.shape[1]
        self.n, self.r = self.all.flatten()[pairs], self.relevant.flatten()[pairs]
        self.before = self.all_until.flatten()[pairs] - self.n
        self.found = self.relevant_until.flatten()[pairs] - self.r

    def at(self, depth):
        """The tie in which rank `depth` (Q, C) falls: n, r, before, found, m, each (Q, C) float64.

        A depth beyond the database ends with it.
        """
        depth = depth.double().clamp(max=self.database)
        tie = torch.searchsorted(self.all_until, depth)
        n, r = self.all.gather(1, tie), self.relevant.gather(1, tie)
        before = self.all_until.gather(1, tie) - n
        found = self.relevant_until.gather(1, tie) - r
        return n, r, before, found, depth - before


def sum_over_ranks(ties, constant, slope, start, length):
    """Σ (constant + slope·i) / (start + i) over i = 1..length, elementwise.

    constant + slope·i = slope·(start + i) + (constant - slope·start), so harmonic numbers do.
    """
    harmonic = ties.harmonic[(start + length).long()] - ties.harmonic[start.long()]
    return slope * length + (constant - slope * start) * harmonic


def precision_sum(ties, depth, order="expected"):
    """Σ of precision at each relevant item within the first `depth` ranks -> (Q,) float64.

    `depth`: (Q,). Average precision is this sum divided by what its definition says.
    "expected": rank i of the tie is relevant with probability r/n, and then found + 1 +
    (i-1)(r-1)/(n-1) relevant items are expected up to it. In the extreme orders the j-th relevant
    item of the tie is at rank j, or at n - r + j.
    """
    n, r, before, found = ties.n, ties.r, ties.before, ties.found
    inside = (depth[ties.query] - before).clamp(min=0).minimum(n)
    if order == "expected":
        slope = (r - 1) / (n - 1).clamp(min=1)
        terms = r / n * sum_over_ranks(ties, found + 1 - slope, slope, before, inside)
    elif order == "optimistic":
        terms = sum_over_ranks(ties, found, 1, before, inside.minimum(r))
    else:
        skipped = n - r
        terms = sum_over_ranks(ties, found, 1, before + skipped, (inside - skipped).clamp(min=0))
    return torch.zeros(len(depth), dtype=torch.float64, device=n.device).index_add_(
        0, ties.query, terms
    )


def hits(cut, order="expected"):
    """Relevant items within the depths (Q, C) of which `cut` is `ties.at` -> (Q, C) float64."""
    n, r, _, found, m = cut
    if order == "expected":
        return found + r * m / n.clamp(min=1)
    if order == "optimistic":
        return found + r.minimum(m)
    return found + (m - (n - r)).clamp(min=0)


def precision_over_found(ties, cut):
    """Expected AP within a depth ÷ relevant items found there; 0 where none is -> (Q,) float64.

    `cut`: `ties.at` of that depth, (Q, 1). The denominator is random: of the tie that the depth
    cuts, h relevant items come in, with hypergeometric probability. Given h, the order of the m
    ranks inside the cut is uniform, so the inner sum is that of a tie of m items, h of them
    relevant:
        Σ_h P(h) · (full + inner(h)) / (found + h),    full = sum over the ties wholly inside.
    A mean of ratios, not a ratio of means: the two extreme orders need not bound it.
    """
    n, r, before, found, m = (x[:, 0] for x in cut)
    full = precision_sum(ties, before)
    least, most = (m - (n - r)).clamp(min=0), r.minimum(m)
    counts = (most - least).long() + 1  # values that h can take, for each query
    out = torch.zeros_like(full)
    for rows in torch.arange(len(n), device=n.device).split(max(1, CELLS // int(counts.max()))):
        query = rows.repeat_interleave(counts[rows])
        first = (counts[rows].cumsum(0) - counts[rows]).repeat_interleave(counts[rows])
        h = least[query] + torch.arange(len(query), device=n.device) - first
        m_, found_ = m[query], found[query]
        slope = (h - 1) / (m_ - 1).clamp(min=1)
        inner = sum_over_ranks(ties, found_ + 1 - slope, slope, before[query], m_)
        inner = inner * h / m_.clamp(min=1)
        chance = hypergeometric(ties.log_factorial, n[query], r[query], m_, h)
        out.index_add_(0, query, chance * (full[query] + inner) / (found_ + h).clamp(min=1))
    return out


def hypergeometric(log_factorial, n, r, m, h):
    """Probability that m of n items, r of them relevant, hold h relevant ones; elementwise."""

    def log_choose(a, b):
        a, b = a.long(), b.long()
        return log_factorial[a] - log_factorial[b] - log_factorial[a - b]

    return (log_choose(r, h) + log_choose(n - r, m - h) - log_choose(n, m)).exp()
