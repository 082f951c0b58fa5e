"""What a comparison found, as lines and as a page."""

import dataclasses
import datetime
import pathlib
import platform

import numpy
import torch
import transformers

LOGIT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model against transformers, both in f32."""

    name: str
    # Prompt and generated tokens whose logits were compared, every one of the vocabulary.
    positions: int
    # Mean over positions of the largest minus the smallest logit: what the difference is small against.
    logit_range: float
    logit_difference: float
    # Whether all chunk sizes gave the same bits.
    chunks_identical: bool
    tokens: int
    same_alone: int
    same_together: int

    def is_kept(self) -> bool:
        return (
            self.logit_difference < LOGIT_TOLERANCE
            and self.chunks_identical
            and self.same_alone == self.tokens
            and self.same_together == self.tokens
        )

    def line(self) -> str:
        bits = "the same bits in all chunk sizes" if self.chunks_identical else "chunk sizes DIFFER"
        return (
            f"{'ok' if self.is_kept() else 'FAILED'}: {self.name}: logits within {self.logit_difference:.1e} over {self.positions} positions "
            f"(they span {self.logit_range:.0f}), {bits}; of {self.tokens} greedy tokens {self.same_alone} the same alone, "
            f"{self.same_together} in the batch"
        )


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A way to compute against the dequantised model in f32, over the positions of a text."""

    name: str
    positions: int
    kl_mean: float
    kl_max: float
    agreement: float
    logit_difference: float

    def line(self) -> str:
        return (
            f"{self.name}: KL mean {self.kl_mean:.2e}, max {self.kl_max:.2e} nats over {self.positions} positions; same next token at "
            f"{100 * self.agreement:.2f} %; logits within {self.logit_difference:.1e}"
        )


def write_report(path: pathlib.Path, comparisons: list[Comparison], divergences: list[Divergence], converted: list[Divergence]) -> None:
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    lines = [
        "# The engine beside transformers",
        "",
        f"`npm run oracle`, {today}, {platform.machine()}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"numpy {numpy.__version__}, Python {platform.python_version()}. Rewritten by each run.",
        "",
        "Both compute in f32 with KV in f32, on the same weights. Logits are compared over the longest prompt and the 128 tokens generated after it;",
        "greedy tokens over eight prompts, each alone and all in one batch where prefills in chunks and decodes share steps. A model passes when all",
        f"logits are within {LOGIT_TOLERANCE:g}, all tokens are the same, and chunks of 7, 64 and 512 tokens give the same bits.",
        "",
        "| model | positions | logits span | largest difference | same bits in all chunks | greedy tokens | same alone | same in the batch | passes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        lines.append(
            f"| {one.name} | {one.positions} | {one.logit_range:.1f} | {one.logit_difference:.1e} | {yes(one.chunks_identical)} | {one.tokens} | "
            f"{one.same_alone} | {one.same_together} | {yes(one.is_kept())} |"
        )
    lines += [
        "",
        "## Computing on quantised weights",
        "",
        "SmolLM2-135M-Instruct from its GGUF file, against transformers on the weights dequantised to f32, over `models/oracle/text.txt`. KL(transformers",
        "‖ engine) of the next-token distributions, in nats; the first row is the noise of f32 itself.",
        "",
        *divergence_table("computed on", divergences),
        "",
        "The small random models of above as they are loaded, against transformers on the values that their files hold. Types that the kernels do",
        "not compute on are kept in others: see models/README.md. Random weights spread probability thinly, so these say more of errors than of use.",
        "",
        *divergence_table("model", converted),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def divergence_table(title: str, divergences: list[Divergence]) -> list[str]:
    rows = [
        f"| {one.name} | {one.positions} | {one.kl_mean:.2e} | {one.kl_max:.2e} | {100 * one.agreement:.2f} % | {one.logit_difference:.1e} |"
        for one in divergences
    ]
    heading = f"| {title} | positions | KL mean | KL max | same next token | largest logit difference |"
    return [heading, "|---|---|---|---|---|---|", *rows]


def yes(value: bool) -> str:
    return "yes" if value else "no"
