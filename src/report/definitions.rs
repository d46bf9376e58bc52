//! What the words of a report mean, for the page that stands alone. METHODOLOGY.md has all of it.

/// Terms and their definitions, in the order in which a reader meets them.
pub(super) type Definitions = &'static [(&'static str, &'static str)];

/// Those of a report of runs.
pub(super) const DEFINITIONS: Definitions = &[
    (
        "single, split",
        "Arms. Single: one node does both phases. Split: the prefill node prefills, its KV cache \
         crosses the link, the decode node makes the tokens after the first.",
    ),
    (
        "TTFT",
        "Request start to first token, on the prefill node's clock. It hides the transfer.",
    ),
    (
        "TTST",
        "Request start to second token: where the transfer and the handoff show.",
    ),
    (
        "TPOT",
        "(E2E - TTFT) / (output tokens - 1). A split's holds its exposed transfer and handoff, \
         spread over the tokens: that is no slower decoding.",
    ),
    ("ITL", "Gap between two tokens of one answer."),
    ("E2E", "Request start to last token."),
    (
        "wire busy",
        "Time in which at least one piece was under way: offered to the socket and not yet \
         acknowledged as in place and verified.",
    ),
    (
        "exposed transfer",
        "Prefill end to the last acknowledgement, less its way back: what the request waits for.",
    ),
    (
        "hidden transfer",
        "Wire busy less exposed: what goes behind prefill.",
    ),
    (
        "transfer overhead",
        "Exposed transfer / E2E of the split arm.",
    ),
    (
        "handoff",
        "On the decode node: last piece verified to first decode step.",
    ),
    (
        "rate, Gbps",
        "KV payload bits / wire busy, in decimal gigabits per second. Gbit/s is the rate of a line or \
         a card, headers included.",
    ),
    (
        "bulk, layered, auto",
        "When the cache crosses the link: after prefill; each layer as soon as it is computed; \
         for each request the one of these predicted to expose less.",
    ),
    (
        "identical, equivalent",
        "Identical: the raw bits of all logits of every token are equal in both arms. Equivalent: \
         logits within a tolerance, tokens equal unless the best two were closer than it.",
    ),
    (
        "95% interval",
        "Of a median, by bootstrap (BCa); none below five samples.",
    ),
    (
        "~",
        "The change may be chance: its interval holds zero or its p is above 5%.",
    ),
    (
        "projected",
        "Not measured here: TCP from the fit of the run's link, RDMA from published measurements.",
    ),
];

/// Those of a report of a sweep over a link.
pub(super) const LINK_DEFINITIONS: Definitions = &[
    (
        "ms",
        "First piece offered to the socket to last piece acknowledged as in place and verified: a \
         median of warm transfers.",
    ),
    (
        "warm",
        "Back to back over connections that carried a transfer before.",
    ),
    ("cold", "The first transfer of new connections."),
    (
        "idle",
        "A transfer over connections that carried nothing for a while.",
    ),
    (
        "Gbps",
        "KV payload bits over that time, in decimal gigabits per second. Gbit/s is the rate of a \
         line or a card, headers included.",
    ),
    (
        "ceiling",
        "The highest median of all combinations; in the table, the share of it.",
    ),
    (
        "fit",
        "What a transfer takes: alpha, a cost of every piece, and a time of the bytes that depends \
         on their number.",
    ),
];
