"""How many latents can be read? A count by rule, in place of an opinion.

Looking at the top contexts of a latent, people find a meaning nearly always. So here a latent counts as readable only
if a *simple rule* says where it fires: the token, or the one before, is one of a few, or a form of one of a few words;
it is of a class such as numbers; it has been seen before; its position. A rule is fitted on one text and scored on
another, at all tokens and not only at the top.

Limits: a latent without such a rule can have a meaning that these rules cannot say; a latent with one can have a finer
meaning. The count is one of simple rules, no more. Families of words are those of a stemmer: it knows endings, so that
"marry" and "married" are one word, and no irregular forms. A word of several tokens is none for these rules.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labcode import sealed
from labcode.corpus import DATA, masked
from labcode.errors import MetricError
from labcode.inputs import guard
from labcode.latents import Codes, repeated
from labcode.metrics import LEVEL, RESAMPLES, Interval, share
from labcode.models import weights_key
from labcode.prompts import NAMES

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.sae import Activations

FEW = 10  # tokens, words or families that a rule may list
LEAST = 20  # tokens of each text on which a latent has to fire, or there is no score
PASS = 0.8  # the F1 from which on a latent counts as read
KINDS = ("token", "word", "word family", "class", "repeated token", "position")
LISTS = KINDS[:3]
NO_FAMILIES = ("token", "class", "repeated token", "position")
THIS_TOKEN = ("token", "word", "word family", "class")
QUESTIONS = ("no families", "strong firing")
SEES: dict[str, Callable[[Rule], bool]] = {  # what rules may look at
    "all": lambda rule: True,
    "this token": lambda rule: not rule.looks_back,
    "before": lambda rule: rule.looks_back and not (rule.kind == "repeated token" and rule.listed),
}
EDGES = (1, 2, 4, 8, 16)
FORMS = 4  # of a family, named in a rule
RECORD = "readability.json"

# Classes of tokens that can be told from the token's text alone. A token may be in several. The closed classes go by
# spelling, so that "that" is a conjunction here, and also an article or the like.
_MARKS = frozenset(string.punctuation + "“”‘’…–—")
_CLOSED = {
    "pronoun": "i you he she it we they me him her us them my your his its our their who whom whose",
    "article or the like": "a an the this that these those each every some any no all both",
    "preposition": "of in to for with on at by from about into over after under between through during against",
    "conjunction": "and or but nor so yet because if when while although since unless that than",
    "form of be, have or do": "is are was were be been being am has have had having do does did doing",
    "modal verb": "can could may might must shall should will would",
}


def _listed(words: str) -> Callable[[str], bool]:
    every = frozenset(words.split())
    return lambda word: word.strip().lower() in every


CLASSES: dict[str, Callable[[str], bool]] = {
    "number": lambda w: w.strip().isdigit(),
    "punctuation mark": lambda w: bool(w.strip()) and set(w.strip()) <= _MARKS,
    "end of a sentence": lambda w: w.strip() in {".", "!", "?", "...", ".”", '."'},
    "quotation mark": lambda w: bool(w.strip()) and set(w.strip()) <= set("\"'“”‘’`"),
    "bracket": lambda w: bool(w.strip()) and set(w.strip()) <= set("()[]{}<>"),
    "line break": lambda w: "\n" in w,
    "capitalised word": lambda w: bool(re.fullmatch(r" ?[A-Z][a-z]+", w)),
    "word in capitals": lambda w: bool(re.fullmatch(r" ?[A-Z]{2,}", w)),
    "single letter": lambda w: bool(re.fullmatch(r" ?[A-Za-z]", w)),
    "lower-case word": lambda w: bool(re.fullmatch(r" [a-z]+", w)),
    "middle or end of a word": lambda w: bool(re.fullmatch(r"[a-z]+", w)),
    "long word": lambda w: w.strip().isalpha() and len(w.strip()) >= 7,
    "first name": lambda w: w.strip() in NAMES,
    "not ASCII": lambda w: not w.isascii(),
    **{name: _listed(words) for name, words in _CLOSED.items()},
}


@cache
def family(text: str) -> str:
    """What a token has in common with the other forms of its word: case, space and ending are taken off.

    The endings are those of the English stemmer of Porter (2001); of what is no word only case and space are taken off.
    """
    word = spelling(text)
    return _stemmer()(word) if word.isascii() and word.isalpha() else word


@cache
def _stemmer() -> Callable[[str], str]:
    import snowballstemmer

    return snowballstemmer.stemmer("english").stemWord  # type: ignore[no-any-return]


def spelling(text: str) -> str:
    """A token without its case and the space before it; one that is only space stays as it is."""
    return text.strip().lower() or text


_KEY: dict[str, Callable[[str], str]] = {"token": str, "word": spelling, "word family": family}


class Text:
    """Contexts as the rules see them: which word stands where, its class, and whether it was there before.

    Args:
        tokens: the contexts, start token at position 0, which is never counted.
        decode: a token id to its text.
    """

    def __init__(self, tokens: Int[Tensor, "context pos"], decode: Callable[[int], str]) -> None:
        ids, self.word = tokens.unique(return_inverse=True)  # [context pos], numbers of `words`
        self.words = [decode(i) for i in ids.tolist()]
        table = torch.tensor([[holds(word) for word in self.words] for holds in CLASSES.values()])  # [class word]
        classes = table[:, self.word]  # [class context pos]
        seen = repeated(tokens)
        position = torch.arange(tokens.shape[1]).expand_as(tokens)
        rules = {Rule("class", (name,)): c for name, c in zip(CLASSES, classes, strict=True)}
        rules |= {Rule("class", (name,), back=True): _earlier(c) for name, c in zip(CLASSES, classes, strict=True)}
        rules[Rule("repeated token")] = seen
        rules |= {Rule("repeated token", (name,)): seen & c for name, c in zip(CLASSES, classes, strict=True)}
        rules |= {Rule("position", ("first", str(edge))): position <= edge for edge in EDGES}
        rules |= {Rule("position", ("after", str(edge))): position > edge for edge in EDGES}
        self.rules = {rule: n for n, rule in enumerate(rules)}
        self.fixed = torch.stack(list(rules.values()))  # [rule context pos]
        self.fixed[:, :, 0] = False
        self._groups: dict[str, tuple[list[str], Tensor]] = {}
        self._counts: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    @property
    def shape(self) -> torch.Size:
        """Contexts and positions."""
        return self.word.shape

    @cached_property
    def said(self) -> Float[Tensor, " rule"]:
        """On how many tokens each of the rules without a list says that a latent fires."""
        return self.fixed.flatten(1).sum(1).float()

    def groups(self, kind: str) -> tuple[list[str], Int[Tensor, "context pos"]]:
        """The words of the text by their spelling or family, and which of them stands where."""
        if kind not in self._groups:
            number: dict[str, int] = {}
            of_word = torch.tensor([number.setdefault(_KEY[kind](word), len(number)) for word in self.words])
            self._groups[kind] = list(number), of_word[self.word]
        return self._groups[kind]

    def counted(self, kind: str, back: bool) -> tuple[Int[Tensor, "context pos"], Float[Tensor, " word"]]:
        """Which word of a kind stands at each token, or before it, and how often each does."""
        if (kind, back) not in self._counts:
            keys, group = self.groups(kind)
            at = _earlier(group) if back else group
            self._counts[kind, back] = at, torch.bincount(at[:, 1:].flatten(), minlength=len(keys)).double()
        return self._counts[kind, back]


def _earlier(x: Tensor) -> Tensor:
    """What stands at the token before; at position 0 that of position 0."""
    return torch.cat([x[:, :1], x[:, :-1]], dim=1)


@dataclass(frozen=True)
class Rule:
    """A simple rule: it says of each token of any text whether a latent fires.

    Attributes:
        kind: one of `KINDS`.
        listed: the tokens, words or stems that it lists; the class; the side and the number of a position.
        back: it looks at the token before.
        forms: of each stem, some of the words on which the latent fires, the most frequent first.
        fitted: F1 on the text that chose it.
    """

    kind: str
    listed: tuple[str, ...] = ()
    back: bool = False
    forms: tuple[tuple[str, ...], ...] = field(default=(), compare=False)
    fitted: float = field(default=0.0, compare=False)

    def holds(self, text: Text) -> Bool[Tensor, "context pos"]:
        """Where it says that the latent fires, position 0 never.

        Raises:
            MetricError: a rule of no known kind.
        """
        if self.kind not in LISTS:
            if self not in text.rules:
                raise MetricError(f"no such rule: {self}")
            return text.fixed[text.rules[self]]
        keys, group = text.groups(self.kind)
        listed = frozenset(self.listed)
        named = torch.tensor([key in listed for key in keys])
        found = named[_earlier(group) if self.back else group]
        found[:, 0] = False
        return found

    @property
    def looks_back(self) -> bool:
        """Whether it needs more than the token itself."""
        return self.back or self.kind in ("repeated token", "position")

    def __str__(self) -> str:
        token = "the token before" if self.back else "the token"
        if self.kind == "class":
            return f"{token} is a {self.listed[0]}"
        if self.kind == "repeated token":
            return "the token has come before" + (f" and is a {self.listed[0]}" if self.listed else "")
        if self.kind == "position":
            side, edge = self.listed
            tokens = "token" if edge == "1" else f"{edge} tokens"
            return f"among the first {tokens}" if side == "first" else f"after the first {tokens}"
        if self.kind == "word family":
            names = [
                _forms(stem, forms)
                for stem, forms in zip(self.listed, self.forms or [()] * len(self.listed), strict=True)
            ]
            return masked(f"{token} is a form of " + ("one of " if len(names) > 1 else "") + ", ".join(names))
        few = "one of " if len(self.listed) > 1 else ""
        end = ", in any case" if self.kind == "word" else ""
        return masked(f"{token} is {few}{' '.join(map(repr, self.listed))}{end}")


def _forms(stem: str, forms: tuple[str, ...]) -> str:
    return "/".join(forms) or stem


@dataclass(frozen=True)
class Found:
    """A rule on a text that did not choose it.

    Attributes:
        by: the rule. f1, precision, recall: on all tokens of the text.
        holds: where the rule says that the latent fires.
        hit, said, true: in each context, on how many tokens the rule is right that the latent fires; says so; it does.
    """

    by: Rule
    f1: float
    precision: float
    recall: float
    holds: Bool[Tensor, "context pos"]
    hit: Float[Tensor, " context"]
    said: Float[Tensor, " context"]
    true: Float[Tensor, " context"]

    @property
    def rule(self) -> str:
        """The rule in words."""
        return str(self.by)

    @property
    def kind(self) -> str:
        """The rule's kind."""
        return self.by.kind

    @property
    def fitted(self) -> float:
        """F1 on the text that chose the rule."""
        return self.by.fitted


def f1(said: Bool[Tensor, "*any"], true: Bool[Tensor, "*any"]) -> float:
    """Twice the hits, divided by all that was said plus all that is true; 0 where both are none.

    Raises:
        MetricError: two shapes.
    """
    if said.shape != true.shape:
        raise MetricError(f"what is said has shape {tuple(said.shape)}, what is true {tuple(true.shape)}")
    return 2 * float((said & true).sum()) / max(1.0, float(said.sum() + true.sum()))


def fit(
    text: Text, fires: Bool[Tensor, "context pos"], few: int = FEW, kinds: Sequence[str] = KINDS, sees: str = "all"
) -> Rule:
    """The simple rule with the highest F1 on a text. Of equally good ones it is the one that comes first in `KINDS`.

    Args:
        fires: where the latent fires; position 0 is not looked at.
        few: how many tokens, words or families a rule may list.
        kinds: of rules that may be chosen.
        sees: what they may look at: "all", "this token" alone, or what stands "before" it, together with whether the
            token itself has come before.

    Raises:
        MetricError: shapes that do not fit, an unknown kind or look, or the latent does not fire on this text.
    """
    if not kinds or set(kinds) - set(KINDS) or sees not in SEES:
        raise MetricError(
            f"kinds {list(kinds)}, sees={sees!r}: choose kinds among {', '.join(KINDS)}; and one of {', '.join(SEES)}"
        )
    true = _counted(text, fires)
    total = float(true.sum())
    if not total:
        raise MetricError("a latent that does not fire on this text has no rule: leave it out of the count")
    candidates = []
    for kind in (kind for kind in LISTS if kind in kinds):
        keys, _ = text.groups(kind)
        for back in (False, True):
            if not SEES[sees](Rule(kind, back=back)):
                continue
            at, count = text.counted(kind, back)
            hit = torch.bincount(at[true], minlength=len(keys)).double()
            best, ratio = best_list(count, hit, total, few)
            if best:
                candidates.append((ratio, kind, back, tuple(keys[i] for i in best)))
    where = true.flatten().nonzero()[:, 0]
    scores = (2 * text.fixed.flatten(1)[:, where].sum(1) / (text.said + total)).tolist()
    for rule, n in text.rules.items():
        if rule.kind in kinds and SEES[sees](rule):
            candidates.append((scores[n], rule.kind, rule.back, rule.listed))
    ratio, kind, back, listed = max(candidates, key=lambda c: (round(c[0], 9), -KINDS.index(c[1])))
    forms = _forms_of(text, true, listed, back) if kind == "word family" else ()
    return Rule(kind, listed, back, forms, ratio)


def score(rule: Rule, text: Text, fires: Bool[Tensor, "context pos"]) -> Found:
    """How well a rule says where a latent fires on a text, which should not be the one that chose it.

    Raises:
        MetricError: shapes that do not fit.
    """
    true, said = _counted(text, fires), rule.holds(text)
    hit, n_said, n_true = (x.sum(1).float() for x in (said & true, said, true))  # [context] each
    found = float(hit.sum())
    return Found(
        by=rule,
        f1=2 * found / max(1.0, float(n_said.sum() + n_true.sum())),
        precision=found / max(1.0, float(n_said.sum())),
        recall=found / max(1.0, float(n_true.sum())),
        holds=said,
        hit=hit,
        said=n_said,
        true=n_true,
    )


def best_list(
    count: Float[Tensor, " word"], hit: Float[Tensor, " word"], total: float, few: int
) -> tuple[list[int], float]:
    """The at most `few` words for which "the word is one of these" has the highest F1, the most frequent hit first.

    Exact: F1 is a ratio, so the best list for a guess of the ratio is the few words with the largest gain above it, and
    the guess rises until it no longer changes (Dinkelbach 1967).

    Args:
        count: how often each word stands in the text. hit: on how many of these the latent fires.
        total: on how many tokens it fires at all.
    """
    ratio, listed = 0.0, list[int]()
    for _ in range(50):
        gain = 2 * hit - ratio * count
        top = gain.topk(min(few, len(gain)))
        chosen = top.indices[top.values > 0]
        better = 2 * float(hit[chosen].sum()) / max(1.0, float(count[chosen].sum()) + total)
        if better <= ratio + 1e-12:
            break
        ratio, listed = better, sorted(chosen.tolist(), key=lambda i: -float(hit[i]))
    return listed, ratio


def _counted(text: Text, fires: Tensor) -> Tensor:
    if fires.shape != text.shape:
        raise MetricError(f"firing of shape {tuple(fires.shape)} for a text of shape {tuple(text.shape)}")
    fires = fires.clone()
    fires[:, 0] = False
    return fires


def _forms_of(text: Text, true: Tensor, listed: tuple[str, ...], back: bool) -> tuple[tuple[str, ...], ...]:
    """Of each family, the words on which the latent fires at least twice, the most frequent first."""
    word = _earlier(text.word) if back else text.word
    hits = torch.bincount(word[true], minlength=len(text.words))
    forms: dict[str, dict[str, int]] = {stem: {} for stem in listed}
    for i in hits.nonzero()[:, 0].tolist():
        of = forms.get(family(text.words[i]))
        if of is not None:
            name = spelling(text.words[i])
            of[name] = of.get(name, 0) + int(hits[i])
    ranked = ([name for name, _ in sorted(of.items(), key=lambda pair: -pair[1])] for of in forms.values())
    often = ([name for name in names if forms[stem][name] > 1] for stem, names in zip(forms, ranked, strict=True))
    return tuple(tuple(names[:FORMS]) for names in often)


@dataclass(frozen=True)
class Scores:
    """The counts of many rules on the same contexts, for intervals.

    Attributes:
        hit, said, true: as in `Found`.
    """

    hit: Float[Tensor, "rule context"]
    said: Float[Tensor, "rule context"]
    true: Float[Tensor, "rule context"]

    @classmethod
    def of(cls, found: Iterable[Found]) -> Scores:
        """Of rules that were scored on the same contexts."""
        each = list(found)
        return cls(*(torch.stack([getattr(one, name) for one in each]) for name in ("hit", "said", "true")))

    def __len__(self) -> int:
        return len(self.hit)

    @property
    def f1(self) -> Float[Tensor, " rule"]:
        """The score of each rule on all contexts."""
        return self._f1(torch.ones(1, self.hit.shape[1]))[:, 0]

    def kept(self, mask: Bool[Tensor, " rule"]) -> Scores:
        """Some of the rules."""
        return Scores(self.hit[mask], self.said[mask], self.true[mask])

    def _f1(self, weight: Float[Tensor, "draw context"]) -> Float[Tensor, "rule draw"]:
        hit, said, true = (x @ weight.T for x in (self.hit, self.said, self.true))
        return 2 * hit / (said + true).clamp(min=1)


def interval(scores: Scores, less: Scores | None = None, passing: bool = False) -> Interval:
    """The mean F1 with a bootstrap interval over contexts *and* rules: other text, and other latents.

    Tokens of a context are not independent, and all rules are scored on the same contexts: so whole contexts are drawn
    anew, for all rules together, and rules too. Percentiles of such draws, which errs to the wide side; of a share, at
    least as wide as `metrics.share`, since draws have no width where all rules pass or none.

    Args:
        less: other rules, one for each, scored on the same contexts: then of the difference.
        passing: the share that reaches `PASS`, in place of the mean F1.

    Raises:
        MetricError: nothing to average, or not one for each.
    """
    (size, contexts), n = scores.hit.shape, RESAMPLES
    if not size or (less is not None and less.hit.shape != scores.hit.shape):
        raise MetricError(
            "no scores, or not one for each: an interval of a difference needs pairs on the same contexts"
        )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(contexts, (n, contexts), generator=generator)
    weight = torch.zeros(n, contexts).scatter_add_(1, drawn, torch.ones(n, contexts))
    rules = torch.randint(size, (n, size), generator=generator)

    def means(of: Scores) -> Tensor:
        return counted(of._f1(weight)).T.gather(1, rules).mean(1)

    def counted(f1: Tensor) -> Tensor:
        return (f1 >= PASS).float() if passing else f1

    draws, mean = means(scores), float(counted(scores.f1).mean())
    if less is not None:
        draws, mean = draws - means(less), mean - float(counted(less.f1).mean())
    low, high = draws.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2])).tolist()
    if passing and less is None:
        alone = share(int(counted(scores.f1).sum()), size)
        low, high = min(low, alone.low), max(high, alone.high)
    return Interval(mean, low, high, size)


def stand_ins(
    x: Float[Tensor, "sample d_model"],
    center: Float[Tensor, " d_model"],
    decoder: Float[Tensor, "d_sae d_model"],
    n: int,
    seed: int = 16,
) -> dict[str, Float[Tensor, "d_model latent"]]:
    """Directions of length 1 that no autoencoder has trained.

    Random ones; random ones with the mean and the covariance of the directions of a decoder, and with those of `x`;
    coordinates; and the vectors of single tokens of `x`.
    """
    g, width = torch.Generator().manual_seed(seed), x.shape[1]

    def spread(rows: Tensor) -> Tensor:
        mean = rows.mean(0)
        return mean + torch.randn(n, len(rows), generator=g) @ (rows - mean) / len(rows) ** 0.5

    directions = {
        "random direction": torch.randn(n, width, generator=g),
        "random, spread like latents": spread(decoder.detach().float()),
        "random, spread like the stream": spread(x.float() - center),
        "coordinate": torch.eye(width)[torch.randint(width, (n,), generator=g)],
        "one token's vector": x[torch.randint(len(x), (n,), generator=g)].float() - center,
    }
    return {name: torch.nn.functional.normalize(of, dim=-1).T for name, of in directions.items()}


def along(
    direction: Float[Tensor, "d_model latent"], x: Float[Tensor, "sample d_model"], center: Tensor
) -> Float[Tensor, "sample latent"]:
    """The cosine of vectors with each direction: how far they point along it, however long they are."""
    return torch.nn.functional.normalize(x.float() - center, dim=-1) @ direction


def stand_in(text: Text, acts: Activations, height: Float[Tensor, " sample"], n: int) -> tuple[float, Rule]:
    """A direction that fires on the `n` highest tokens of a text: above which height that is, and its rule.

    Args:
        text, acts, height: the text that chooses, its vectors and how far they lie along the direction.
    """
    cut = float(height.topk(n).values[-1])
    return cut, fit(text, placed(acts, text.shape, height, cut) > 0)


def placed(
    acts: Activations, shape: torch.Size, height: Float[Tensor, " sample"], cut: float
) -> Float[Tensor, "context pos"]:
    """Where heights reach a cut, and by how much they pass it; zero where they don't."""
    high = height >= cut
    value = torch.zeros(shape)
    value[acts.context[high], acts.position[high]] = height[high] - cut + 1e-6
    return value


@dataclass(frozen=True)
class Fits:
    """Rules that some text has chosen.

    Attributes:
        n_contexts: so many contexts have chosen them. recorded: whether a command did it before.
        rules: by latent, all kinds allowed.
        narrow: by name of a narrower question, then by latent.
        sample: latents drawn at random from those that can be tested. n_testable: how many there are.
        shuffled: what was recorded of the model with shuffled weights.
    """

    n_contexts: int
    recorded: bool
    rules: dict[int, Rule]
    narrow: dict[str, dict[int, Rule]]
    sample: list[int]
    n_testable: int = 0
    shuffled: dict[str, Any] = field(default_factory=dict)


def sae_key(sae: Any) -> str:
    """A short text that changes with the weights of an autoencoder."""
    parts = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    return hashlib.sha256(b"".join(p.detach().float().cpu().numpy().tobytes() for p in parts)).hexdigest()[:20]


def can_be_tested(chosen: Codes, unseen: Codes, least: int = LEAST) -> Bool[Tensor, " d_sae"]:
    """Which latents fire on at least `least` tokens of each text."""
    return torch.minimum(*(codes.density * codes.tokens[:, 1:].numel() for codes in (chosen, unseen))) >= least - 0.5


def draw(can: Bool[Tensor, " d_sae"], n: int, seed: int = 15) -> list[int]:
    """Up to `n` of the testable latents, at random."""
    order = torch.randperm(len(can), generator=torch.Generator().manual_seed(seed)).tolist()
    return [i for i in order if can[i]][:n]


def fit_all(codes: Codes, text: Text, sample: Sequence[int], others: Iterable[int], n_testable: int = 0) -> Fits:
    """Choose rules for latents, and for narrower questions about them.

    Args:
        codes, text: the same contexts, as codes and as words.
        sample: latents for all questions. others: latents for which only a rule is wanted.
    """
    rules: dict[int, Rule] = {}
    narrow: dict[str, dict[int, Rule]] = {name: {} for name in QUESTIONS}
    for i in dict.fromkeys([*sample, *others]):
        value = codes.of(i)
        fires = value > 0
        if not fires[:, 1:].any():
            continue
        rules[i] = fit(text, fires)
        if i in sample:
            narrow["no families"][i] = fit(text, fires, kinds=NO_FAMILIES)
            narrow["strong firing"][i] = fit(text, value >= value.max() / 2)
    return Fits(len(codes.tokens), False, rules, narrow, list(sample), n_testable)


def pack(fits: Fits) -> dict[str, Any]:
    """The fits as a table for a file."""
    return {
        "n_contexts": fits.n_contexts,
        "n_testable": fits.n_testable,
        "sample": fits.sample,
        "rules": {str(i): _packed(rule) for i, rule in fits.rules.items()},
        "narrow": {name: {str(i): _packed(rule) for i, rule in of.items()} for name, of in fits.narrow.items()},
        "shuffled": fits.shuffled,
    }


def recorded(model: TransformerBridge, sae: Any, path: Path = DATA / RECORD) -> Fits | None:
    """The fits that come with the book, if there are any, of this model and this autoencoder; else None.

    Raises:
        EvidenceError: the file can't be read.
    """
    if not path.exists():
        return None
    kept = sealed.read(path)
    if (kept["weights"], kept["sae"]) != (weights_key(model), sae_key(sae)):
        return None
    return Fits(
        n_contexts=kept["n_contexts"],
        recorded=True,
        rules={int(i): _unpacked(rule) for i, rule in kept["rules"].items()},
        narrow={name: {int(i): _unpacked(rule) for i, rule in of.items()} for name, of in kept["narrow"].items()},
        sample=kept["sample"],
        n_testable=kept["n_testable"],
        shuffled=kept["shuffled"],
    )


def _packed(rule: Rule) -> dict[str, Any]:
    return {key: value for key, value in asdict(rule).items() if value} | {"fitted": round(rule.fitted, 4)}


def _unpacked(row: dict[str, Any]) -> Rule:
    forms = tuple(tuple(names) for names in row.get("forms", ()))
    return Rule(row["kind"], tuple(row.get("listed", ())), row.get("back", False), forms, row["fitted"])


guard(globals(), MetricError)
