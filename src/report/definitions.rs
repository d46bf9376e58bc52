//! What the words of a report mean, for the page that stands alone. METHODOLOGY.md has all of it.

/// Terms and their definitions, in the order in which a reader meets them.
pub(super) const DEFINITIONS: &[(&str, &str)] = &[
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
    ("TPOT", "(E2E - TTFT) / (output tokens - 1)."),
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
        "KV payload bits / wire busy, in decimal gigabits per second.",
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
