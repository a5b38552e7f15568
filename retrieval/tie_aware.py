"""Ranking metrics in closed form from histograms of Hamming distances: exact under ties.

Items at equal distance from a query are tied, and no order among them is the right one. Each metric
is therefore computed for three orders:

    "expected"     the mean over all orders of the tied items, which are equally likely
    "optimistic"   the relevant items of each tie first
    "pessimistic"  the relevant items of each tie last

Symbols of a tie at distance d, with those of He et al.:

    n           items in the tie                        n_d
    r           relevant items in the tie               n_d⁺
    n_before    items at smaller distances              N_{d-1}
    r_before    relevant items at smaller distances     N_{d-1}⁺
    m           ranks of the tie within a given depth

Sources: F. McSherry, M. Najork, "Computing information retrieval performance measures efficiently
in the presence of tied scores", ECIR 2008; K. He, F. Cakir, S. A. Bargal, S. Sclaroff, "Hashing as
tie-aware learning to rank", CVPR 2018, https://arxiv.org/abs/1705.08562. Both have AP over all
ranks; for AP within a depth the functions derive the formula. Arithmetic is float64.
"""

from typing import NamedTuple

import torch

ORDERS = {"expected": "", "optimistic": "_optimistic", "pessimistic": "_pessimistic"}  # suffixes
MAX_CELLS = 2**22  # elements of one temporary in `precision_over_found`


class Tie(NamedTuple):
    """One tie of each query, or several: float64 tensors of one shape."""

    n: torch.Tensor
    r: torch.Tensor
    n_before: torch.Tensor
    r_before: torch.Tensor


class Ties:
    """All ties of Q queries, with the tables that the closed forms need.

    counts, relevant: (Q, K+1) int64, items and relevant items at each distance.

    Attributes, float64 unless stated:
    counts, relevant              (Q, K+1)
    counts_until, relevant_until  (Q, K+1), items at distance <= d: their running sums
    num_items                     int, size of the database
    relevant_ties                 `Tie` of vectors: those ties that hold a relevant item, since only
                                  they add to average precision
    query                         int64, the query of each of them
    harmonic                      H(i) less a constant that cancels in differences; by digamma, as a
                                  running sum over a million items would lose digits
    log_factorial                 log i!
    """

    def __init__(self, counts, relevant):
        self.counts, self.relevant = counts.double(), relevant.double()
        self.counts_until, self.relevant_until = self.counts.cumsum(1), self.relevant.cumsum(1)
        self.num_items = int(self.counts_until[:, -1].max())
        ranks = torch.arange(1, self.num_items + 2, dtype=torch.float64, device=counts.device)
        self.harmonic, self.log_factorial = torch.digamma(ranks), torch.lgamma(ranks)
        cells = relevant.flatten().nonzero()[:, 0]
        self.query = cells // counts.shape[1]
        self.relevant_ties = self._select(lambda table: table.flatten()[cells])

    def _select(self, read):
        """The `Tie` of the cells that `read` takes from each (Q, K+1) table."""
        n, r = read(self.counts), read(self.relevant)
        return Tie(n, r, read(self.counts_until) - n, read(self.relevant_until) - r)

    def at_depth(self, depth):
        """The tie that contains rank `depth` (Q, C), and its number of ranks m within the depth.

        Returns (tie, m), tensors of (Q, C). A depth beyond the database is the whole database.
        """
        depth = depth.double().clamp(max=self.num_items)
        distance = torch.searchsorted(self.counts_until, depth)
        tie = self._select(lambda table: table.gather(1, distance))
        return tie, depth - tie.n_before


def num_relevant_within(tie, m, order="expected"):
    """Number of relevant items within a depth; `tie` and `m` from `Ties.at_depth`; elementwise."""
    if order == "expected":
        return tie.r_before + tie.r * m / tie.n.clamp(min=1)
    if order == "optimistic":
        return tie.r_before + tie.r.minimum(m)
    return tie.r_before + (m - (tie.n - tie.r)).clamp(min=0)


def precision_sum(ties, depth, order="expected"):
    """Σ of the precision at each relevant item within the first `depth` ranks -> (Q,) float64.

    depth: (Q,). Average precision is this sum divided by a number of relevant items.

    "expected": rank i of a tie is relevant with probability r/n, and then the mean number of
    relevant items up to it is r_before + 1 + (i-1)(r-1)/(n-1). The tie adds
        Σ_{i=1..m} r/n · (r_before + 1 + (i-1)(r-1)/(n-1)) / (n_before + i)
    The other orders have the j-th relevant item of the tie at rank j, or at rank n - r + j.
    """
    n, r, n_before, r_before = ties.relevant_ties
    m = (depth[ties.query] - n_before).clamp(min=0).minimum(n)
    if order == "expected":
        slope = (r - 1) / (n - 1).clamp(min=1)
        terms = r / n * sum_of_ratios(ties, r_before + 1 - slope, slope, n_before, m)
    elif order == "optimistic":
        terms = sum_of_ratios(ties, r_before, 1, n_before, m.minimum(r))
    else:
        others = n - r
        terms = sum_of_ratios(ties, r_before, 1, n_before + others, (m - others).clamp(min=0))
    total = torch.zeros(len(depth), dtype=torch.float64, device=n.device)
    return total.index_add_(0, ties.query, terms)


def sum_of_ratios(ties, constant, slope, start, length):
    """Σ_{i=1..length} (constant + slope·i) / (start + i), elementwise, by harmonic numbers.

    They suffice because constant + slope·i = slope·(start + i) + (constant - slope·start).
    """
    harmonic = ties.harmonic[(start + length).long()] - ties.harmonic[start.long()]
    return slope * length + (constant - slope * start) * harmonic


def precision_over_found(ties, depth):
    """Expected AP within a depth, divided by the relevant items found there -> (Q,) float64.

    depth: (Q,). The result is 0 where no relevant item is found. The denominator is random too: the
    tie that the depth cuts has h relevant items within the depth, with hypergeometric probability
    P(h). Given h, all orders of the m ranks are equally likely, as in a tie of m items with h
    relevant ones:
        Σ_h P(h) · (whole + inner(h)) / (r_before + h)
    where `whole` and `inner` are the sums of precision over the ties before the cut and within it.
    A mean of ratios can lie outside the range from the pessimistic to the optimistic order.
    """
    tie, m = ties.at_depth(depth[:, None])
    n, r, n_before, r_before, m = (x[:, 0] for x in (*tie, m))
    whole = precision_sum(ties, n_before)
    least, most = (m - (n - r)).clamp(min=0), r.minimum(m)
    num_values = (most - least).long() + 1  # values that h can have, for each query
    result = torch.zeros_like(whole)
    rows_at_once = max(1, MAX_CELLS // int(num_values.max()))
    for rows in torch.arange(len(n), device=n.device).split(rows_at_once):
        counts = num_values[rows]
        query = rows.repeat_interleave(counts)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        h = least[query] + torch.arange(len(query), device=n.device) - first
        m_h = m[query]
        slope = (h - 1) / (m_h - 1).clamp(min=1)
        inner = sum_of_ratios(ties, r_before[query] + 1 - slope, slope, n_before[query], m_h)
        inner = inner * h / m_h.clamp(min=1)
        probability = hypergeometric(ties.log_factorial, n[query], r[query], m_h, h)
        found = (r_before[query] + h).clamp(min=1)
        result.index_add_(0, query, probability * (whole[query] + inner) / found)
    return result


def hypergeometric(log_factorial, n, r, m, h):
    """Probability that m of n items, r of them relevant, hold h relevant ones; elementwise."""
    relevant = log_choose(log_factorial, r, h)
    others = log_choose(log_factorial, n - r, m - h)
    return (relevant + others - log_choose(log_factorial, n, m)).exp()


def log_choose(log_factorial, n, k):
    """log of the binomial coefficient "n choose k"; elementwise."""
    n, k = n.long(), k.long()
    return log_factorial[n] - log_factorial[k] - log_factorial[n - k]
