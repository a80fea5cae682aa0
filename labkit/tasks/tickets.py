"""Task `tickets`: classify what a smart-home shop's customer wants into 48 categories."""

import json
from importlib import resources
from statistics import fmean

from labkit.tasks import UnknownName

FILE = resources.files(__package__) / "tickets.jsonl"
SYSTEM = "Support desk."  # by default, SmolLM2's chat template adds a longer system message
QUESTION = "Category of this ticket?"
OTHER = "other"  # for answers without a category
# group -> its categories, easily confused with each other
GROUPS = {
    "billing": (
        "refund_request",
        "refund_status",
        "chargeback",
        "duplicate_charge",
        "wrong_amount",
        "payment_declined",
        "payment_method_change",
        "invoice_copy",
    ),
    "subscription": (
        "cancel_subscription",
        "pause_subscription",
        "upgrade_plan",
        "downgrade_plan",
        "unwanted_renewal",
        "trial_question",
    ),
    "orders": (
        "order_status",
        "order_change",
        "order_cancellation",
        "missing_item",
        "wrong_item",
        "damaged_item",
    ),
    "delivery": (
        "late_delivery",
        "lost_parcel",
        "delivered_not_received",
        "address_change",
        "customs_fees",
    ),
    "returns": ("return_request", "return_label", "exchange_request", "warranty_claim"),
    "account": (
        "password_reset",
        "two_factor_problem",
        "account_locked",
        "hacked_account",
        "email_change",
        "account_deletion",
        "merge_accounts",
    ),
    "technical": (
        "app_crash",
        "slow_app",
        "sync_problem",
        "installation_help",
        "api_error",
        "outage_report",
    ),
    "service": (
        "product_question",
        "stock_question",
        "discount_code_problem",
        "gift_card_problem",
        "feature_request",
        "staff_complaint",
    ),
}
CATEGORIES = tuple(category for group in GROUPS.values() for category in group)
GROUP_OF = {category: group for group, categories in GROUPS.items() for category in categories}


def rows(split="train", groups=tuple(GROUPS)):
    """Return a split's rows as dicts: `messages category group style text`."""
    for group in groups:
        if group not in GROUPS:
            raise UnknownName("group", group, GROUPS)
    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [
        _row(line)
        for line in lines
        if line["split"] == split and GROUP_OF[line["category"]] in groups
    ]


def zero_shot(text):
    """Messages that list the categories, for a model not trained on the task."""
    task = f"Choose the category of this ticket from: {', '.join(CATEGORIES)}."
    return _asked(f"{task}\nAnswer with the category only.\n\nTicket: {text}")


def hits(predictions, rows):
    """Whether each answer names its row's category, ignoring case and outer whitespace."""
    pairs = zip(predictions, rows, strict=True)
    return [_named(answer) == row["category"] for answer, row in pairs]


def accuracy(predictions, rows):
    """The share of `hits`, from 0 to 1; ValueError for no rows."""
    return fmean(hits(predictions, rows))


def _named(answer):
    name = answer.strip().lower()
    return name if name in GROUP_OF else OTHER


def _asked(content):
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def _row(line):
    category, text = line["category"], line["text"]
    answer = {"role": "assistant", "content": category}
    return {
        "messages": [*_asked(f"{QUESTION}\n{text}"), answer],
        "category": category,
        "group": GROUP_OF[category],
        "style": line["style"],
        "text": text,
    }
