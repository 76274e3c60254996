"""What a template shows in the sentence that it stands in, for the templates that stand in sentences.

Wikipedia has hundreds of thousands; these are the common ones of some languages' encyclopedias. Whatever is not here
leaves a hole, and the sentence with the hole leaves the text (`wikitext`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.knowledge.markup.prose import BULLET, NUMBER, lowered, raised

# Names are lower-case with spaces. The first positional argument is shown.
_FIRST = frozenset(
    """
    abbr abréviation angle big bigger ch chset comment formatnum harvtxt ill illm ipa iw keypress langnf large larger lien lj
    le mvar math midsize nihongo nobr nobreak nombre normal num nowrap nq nq1 pre proper resize ruby rtl s2 sc sc1
    sc2 small smallcaps smaller tooltip tq unicode uc vanchor versalita visible visible-anchor красный текст
    s nb число уд ударение подсказка 僻字 pua 仮リンク internal-link-helper refnec refsou japonais kbd code flag flagu
    flagcountry citation-needed-span référence-nécessaire référence-souhaitée citar-necesaria
    読み仮名 ルビ ふりがな 要出典範囲 独自研究範囲 疑問点範囲 ill2 日本語版にない記事リンク jis2004フォント 補助漢字フォント
    拡張漢字 旧字体 縦書き إنج
    """.split()
)
# The last one is: `{{lang|fr|texte}}`.
_LAST = frozenset("lang langue lang2 язык لغة color fontsize transl transliteration script rtl-lang tsl".split())
_QUOTATION = frozenset(
    """
    quote quotation blockquote bquote cquote centered-quote rquote citation-bloc bloc-citation cita cita-destacada цитата اقتباس
    """.split()
)
_MEASURE = frozenset("convertir unité unité/2 unidad conversion convertido".split())
_ENGLISH_MEASURE = frozenset("convert cvt val".split())
_JOINED = frozenset("date date- oldstyledate юлианскаядата".split())
_LISTS = {"ordered list": NUMBER, "bulleted list": BULLET, "unordered list": BULLET}
_CURRENCY = {"us$": "US$", "usd": "US$", "gbp": "£", "£": "£", "€": "€", "eur": "€", "au$": "A$", "cad": "C$", "inr": "₹"}
# Shown the same whatever their arguments.
_FIXED = {
    "'": "’", "'s": "’s", "' \"": "’\"", "\" '": "\"’", "-\"": "\"", "nbsp": " ", "sp": " ", "thinsp": " ", "spaces": " ",
    "snd": " – ", "spnd": " – ", "spaced ndash": " – ", "ndash": "–", "mdash": "—", "mdashb": "—", "spaced mdash": " — ",
    "·": "·", "•": "•", "dot": "·", "!": "|", "=": "=", "eqm": "⇌", "er": "er", "ère": "ère", "e": "e", "1er": "1er",
    "ier": "Ier", "n°": "n°", "av. j.-c.": "av. J.-C.", "av jc": "av. J.-C.", "ap. j.-c.": "apr. J.-C.",
    "до н. э.": "до н. э.", "н. э.": "н. э.", "okina": "ʻ", "carbon": "C",
    "hydrogen": "H", "oxygen": "O", "nitrogen": "N", "hamza": "ʼ",
}  # fmt: skip
# Sources, pronunciations, flags and remarks to editors: nothing of the sentence.
_SILENT = re.compile(
    r"""ipa[c-].*|ipa|api|afi|мфа|audio|listen|pron.*|respell|zh|bd|
    c(?:ite|ita)\b.*|citation(?:\ needed)?|cn|fact|sfn.*|harv(?:nb|p|col.*)?|efn.*|refn|ref|rp|r|note|notetag|
    flag(?:icon|deco).*|bandera|флаг|coord.*|anchor|ancre|якорь|clarify.*|who|when|where|which|by\ whom|sic|dubious.*|vague|
    page\ needed|failed\ verification|verify.*|better\ source.*|unreliable.*|according\ to\ whom|update.*|relevance.*|
    .*[ -]inline|..\ icon|en|fr|es|ru|de|cita\ requerida|нет\ аи|источник\?|來源請求|来源请求|要出典|要検証|要説明|要ページ番号|
    疑問点|いつ|誰2?|どこ|بحاجة\ لمصدر|उद्धरण\ आवश्यक|джерело\?|нема\ джерела|inflation-fn|main|see\ also|further|
    main\ article|article\ détaillé|use\ .*|italic\ title""",
    re.VERBOSE,
)
_UNITS = {
    "mi": "miles", "sqmi": "square miles", "sqft": "square feet", "acre": "acres", "km2": "km²", "m2": "m²", "km3": "km³",
    "m3": "m³", "c": "°C", "f": "°F", "sqkm": "km²", "in": "inches", "ft": "feet", "yd": "yards", "impgal": "gallons",
    "usgal": "gallons", "lb": "pounds", "oz": "ounces", "long ton": "long tons", "short ton": "short tons", "kn": "knots",
    "km/h": "km/h", "mph": "miles per hour", "ha": "hectares",
}  # fmt: skip
_SINGULAR = {"feet": "foot", "inches": "inch"}
_BETWEEN = {"to": " to ", "and": " and ", "or": " or ", "-": "–", "–": "–", "x": " × ", "×": " × ", "by": " by ", "+/-": " ± "}
_MONTHS = "January February March April May June July August September October November December".split()
_MOST_DIGITS = 100  # of a number that is read: Python refuses from 4300 on
_ROMAN = re.compile(r"[ivxlcdm]+", re.IGNORECASE)


Shape = Callable[[Sequence[str], Mapping[str, str]], str]


def shown(name: str, values: Sequence[str], named: Mapping[str, str]) -> str | None:
    """The words that the template shows, `""` when it shows none, None when it is not known.

    `values` are the positional arguments as text, `named` the others; `name` is lower-case with spaces.
    """
    if name.startswith("formatnum:"):
        return name.removeprefix("formatnum:").strip() if "{" not in name else None
    if name in _FIXED:
        return _FIXED[name]
    values = [*values, *(named[key] for key in ("texte", "text", "текст") if named.get(key))]
    if values and (shape := _shape(name)):
        return shape(values, named)
    return "" if _SILENT.fullmatch(name) else None


def _shape(name: str) -> Shape | None:
    if name in _SHAPES:
        return _SHAPES[name]
    if name.startswith(("lang-", "link-", "script/")):
        return _first
    return _title_or_words if name.startswith(("нп", "не переведено", "не перекладено")) else None


def _first(values: Sequence[str], named: Mapping[str, str]) -> str:
    return values[0]


def _last(values: Sequence[str], named: Mapping[str, str]) -> str:
    return values[-1]


def _title_or_words(values: Sequence[str], named: Mapping[str, str]) -> str:
    """`{{нп5|Title|words|en|Title there}}`, where the words may be empty."""
    return next((value for value in values[1:2] if value), values[0])


def _measure(values: Sequence[str], named: Mapping[str, str], *, english: bool) -> str:
    """`{{convert|5|to|10|mi|km}}`: the numbers with what stands between them, and their unit; what it converts to is left out."""
    words, place = _grouped(english, values[0]), 1
    while len(values) > place + 1 and values[place] in _BETWEEN:
        words += _BETWEEN[values[place]] + _grouped(english, values[place + 1])
        place += 2
    if power := named.get("e"):
        words += f" × 10{raised(power)}"
    unit = named.get("u") or named.get("ul") or (values[place] if len(values) > place else "")
    spelt = _UNITS.get(unit.lower(), unit) if english else unit
    if spelt != unit and named.get("adj") in {"on", "mid"}:
        return f"{words}-{_SINGULAR.get(spelt, spelt.removesuffix('s'))}"
    return f"{words} {spelt}".strip()


def _grouped(english: bool, number: str) -> str:
    return f"{int(number):,}" if english and number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS else number


def _month(number: str, names: Sequence[str]) -> str:
    """The month's name; what is no month's number stays."""
    is_number = number.isdecimal() and len(number) <= _MOST_DIGITS
    return names[int(number) - 1] if is_number and 1 <= int(number) <= len(names) else number


def _as_of(values: Sequence[str], named: Mapping[str, str]) -> str:
    date = list(values[:3])
    date[1:2] = (_month(number, _MONTHS) for number in date[1:2])
    words = "since" if "since" in named else "as of"
    text = named.get("alt") or " ".join(["" if "bare" in named else words, *reversed(date)]).strip()
    return text if named.get("lc") or "alt" in named else text[:1].upper() + text[1:]


def _fraction(values: Sequence[str], named: Mapping[str, str]) -> str:
    whole = f"{values[0]} " if len(values) > 2 else ""
    over, under = values[-2:] if len(values) > 1 else ("1", values[0])
    return f"{whole}{over}/{under}"


def _chemical(values: Sequence[str], named: Mapping[str, str]) -> str:
    """`{{chem|SO|4|2-}}`: SO₄²⁻."""
    return "".join(raised(value) if value.endswith(("+", "-", "−")) else lowered(value) for value in values)


def _century(values: Sequence[str], named: Mapping[str, str]) -> str:
    """French `{{s-|XIX|e}}`; the Russian template of the name keeps words together."""
    if not _ROMAN.fullmatch(values[0]):
        return values[0]
    return values[0].upper() + (values[1] if len(values) > 1 else "e") + " siècle"


def _spanish_date(values: Sequence[str], named: Mapping[str, str]) -> str:
    months = "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split()
    date = list(values[:3])
    date[1:2] = (_month(number, months) for number in date[1:2])
    return " de ".join(date)


def _listed(values: Sequence[str], named: Mapping[str, str], *, mark: str) -> str:
    return "\n" + "".join(f"{mark}{value}\n" for value in values)


def _before(prefix: str) -> Shape:
    return lambda values, named: prefix + values[0]


def _spaced(names: Iterable[str]) -> list[str]:
    return [name.replace("-", " ") if len(name) > 3 else name for name in names]


_SHAPES: Mapping[str, Shape] = {
    **dict.fromkeys(_spaced(_FIRST), _first),
    **dict.fromkeys(_spaced(_LAST), _last),
    **dict.fromkeys(_spaced(_QUOTATION), lambda values, named: f"\n\n{values[0]}\n\n"),
    **dict.fromkeys(_MEASURE, functools.partial(_measure, english=False)),
    **dict.fromkeys(_ENGLISH_MEASURE, functools.partial(_measure, english=True)),
    **dict.fromkeys(_JOINED, lambda values, named: " ".join(value for value in values[:3] if value)),
    **{name: functools.partial(_listed, mark=mark) for name, mark in _LISTS.items()},
    **{name: _before(sign) for name, sign in _CURRENCY.items()},
    **{name: _before(f"{name.upper()} ") for name in ("uss", "hms", "ss")},
    **dict.fromkeys(("circa", "c."), _before("c. ")),
    **dict.fromkeys(("frac", "sfrac"), _fraction),
    **dict.fromkeys(("s", "siècle"), _century),
    **dict.fromkeys(("chem", "chem2"), _chemical),
    "sub": lambda values, named: lowered(values[0]),
    "sup": lambda values, named: raised(values[0]),
    **dict.fromkeys(("angbr", "vr"), lambda values, named: f"⟨{values[0]}⟩"),
    **dict.fromkeys(("citation", "«"), lambda values, named: f"« {values[0]} »"),
    "as of": _as_of,
    "s-": lambda values, named: _century(values, named).removesuffix(" siècle"),
    "siglo": lambda values, named: f"siglo {values[0].upper()}",
    "fecha": _spanish_date,
    "hlist": lambda values, named: ", ".join(values),
    "heure": lambda values, named: " h ".join(values[:2]),
}
