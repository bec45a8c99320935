r"""The many spellings of LaTeX and Unicode that mean one thing, as one of them."""

from __future__ import annotations

import re
import unicodedata

WRAPPER = r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname) ?"
"""A command around words, or around the letters of a name."""
GREEK = (
    "(?i:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|(?:var)?rho"
    "|(?:var)?sigma|tau|upsilon|(?:var)?phi|chi|psi|omega)(?![A-Za-z])"
)
LETTER = rf"\\(?:(?:pi|hbar)(?![A-Za-z])|{GREEK})"
"""A command that is a letter, and takes no argument."""

_SYMBOLS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≈": r"\approx ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "<=": r"\le ",
    ">=": r"\ge ",
    "**": "^",
    "∪": r"\cup ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    r"\varnothing": r"\emptyset ",
    "°": r"^\circ ",
    "℃": r"^\circ C",
    "℉": r"^\circ F",
    "¢": r"\text{ cents}",
    "…": r"\ldots ",
    "...": r"\ldots ",
    r"\dots": r"\ldots ",
    r"\cdots": r"\ldots ",
    "′": "'",
    "″": "''",
    "’": "'",
    "”": "''",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    "\u03a9": r"\Omega ",
    "\u2126": r"\Omega ",
    "\u0393": r"\Gamma ",
    "\u03b3": r"\gamma ",
    "\u0394": r"\Delta ",
    "\u2206": r"\Delta ",
    "\u00b5": r"\mu ",
    "\u03bc": r"\mu ",
    r"\colon": ":",
}
_SPELLINGS = [
    (re.compile(pattern), latex)
    for pattern, latex in {
        # A separator of thousands, which no list has; behind a lone 0 it is a comma of decimals.
        r"(?<!(?<!\d)0)(?<=\d)(?:\{,\}|,(?:\\? )?\\!) ?(?=\d{3}(?!\d))": "",
        # What a formula begins and ends with.
        r"(?<!\\)(?<!left)(?<!right)\\[()\[\]]": "",
        # A comma of decimals, and what is in braces so that no space follows it.
        r"(?<![\d},.])(\d+)\{,\}(\d+)(?![\d{,.])": r"\1.\2",
        r"(?<![A-Za-z])\{([,:])\}": r"\1",
        # Plain letters.
        r"(?<![A-Za-z\\])pi(?![A-Za-z])": r"\\pi ",
        r"(?<=\d) ?x ?(?=10 ?\^)": r"\\times ",
        r"√\(([^()]*)\)": r"\\sqrt{\1}",
        # An argument without its braces, where the parser wants them.
        rf"(\\[dtc]?frac) ?({LETTER})": r"\1{\2}",
        rf"(\\[dtc]?frac) ?(?:(\w)|\{{((?:[^{{}}]|\{{[^{{}}]*\}})*+)\}}) ?({LETTER})": r"\1{\2\3}{\4}",
        r"(√|\\sqrt ?\[\d+\]) ?(\d+(?:\.\d+)?)": r"\1{\2}",
        "√": r"\\sqrt ",
        r"\\sqrt ?(\d+\.\d+|\d{2,})": r"\\sqrt{\1}",
        r"(\^|\\sqrt) ?(\\[dtc]?frac) ?(\d|\{[^{}]*\}) ?(\d|\{[^{}]*\})": r"\1{\2\3\4}",
        # Sizes of brackets and fractions.
        r"\\(?:m?(?:left|right|middle)|[bB]igg?[lrm]?)(?=\\?[()\[\]|{}]| ?\\[lr](?:angle|brace|vert|Vert))": "",
        r"\\[dtc]frac(?![A-Za-z])": r"\\frac",
        r"\\([lg]e)(?:q|qslant)(?![A-Za-z])": r"\\\1 ",
        r"\\[dt]?binom ?(\d) ?(\d)": r"\\binom{\1}{\2}",
        r"\\[dt]binom(?![A-Za-z])": r"\\binom",
        r"\\[bp]mod(?![A-Za-z])": r"\\mod ",
        r"\^ ?-(\d+)": r"^{-\1}",
        # A vector is a tuple; without a comma it is a mean.
        r"\\langle(?![A-Za-z]) ?((?:(?!\\[lr]angle)[^,])*+,(?:(?!\\[lr]angle)[\s\S])*+)\\rangle(?![A-Za-z])": r"(\1)",
        # The rows of a matrix, and how large it is.
        r"\\\\ ?\[-?[\d.]+ ?(?:pt|em|ex|mm|cm|in)\]|\\cr(?![A-Za-z])": r"\\\\",
        r"\{([pbvBV]?)(?:small)?matrix\*?\}": r"{\1matrix}",
        # Fonts and colours.
        r"\\(?:text)?color ?\{\w+\} ?": "",
        r"\\mathbb ([A-Z])": r"\\mathbb{\1}",
        r"\\(?:textrm|texttt|textnormal|textup|textsf|mathsf)(?![A-Za-z])": r"\\text",
        r"\\(?:boldsymbol|bm)(?![A-Za-z])": r"\\mathbf",
        r"\\(vec|hat|bar|dot|ddot|tilde|mathbf|overline|overrightarrow) ([A-Za-z])(?![A-Za-z])": r"\\\1{\2}",
        # Bold type, which a vector may have beside its arrow or hat.
        r"\\textbf ?\{([ijk])\}": r"\\mathbf{\1}",
        rf"\\(vec|hat) ?\{{ ?{WRAPPER}\{{([A-Za-z])\}} ?\}}": r"\\\1{\2}",
        r"\\(?:mathbf|textbf) ?\{ ?\\(vec|hat) ?\{([A-Za-z]|\\[a-z]+)\} ?\}": r"\\\1{\2}",
        rf"\\Delta ?\{{ ?((?:[A-Za-z]|{LETTER})(?:_\w)?) ?\}}": r"\\Delta \1",
        r"\{ ?\\(?:rm|sf|it) ([^{}]*)\}|\\(?:rm|sf|it) ?\{([^{}]*)\}": r"\\text{\1\2}",
        r"\{ ?\\bf ([^{}]*)\}|\\bf ?\{([^{}]*)\}": r"\\mathbf{\1\2}",
        r"\^? ?\\degree(?![A-Za-z])|(?<=\d)\^ ?(?:o(?![A-Za-z])|\{o\}|\{\\text\{o\}\})": r"^\\circ ",
        r"\^ ?\{ ?\\prime ?\\prime ?\}": "''",
        r"\^ ?(?:\\prime(?![A-Za-z])|\{ ?\\prime ?\})": "'",
        r"(?<=\d) ?\"": "''",
        r"(?<!\\)\$|\\!|\\displaystyle\b|\\limits\b": "",
    }.items()
]
_SMALL_DIGITS = re.compile(r"([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)|[₀₁₂₃₄₅₆₇₈₉]+")


def in_latex(text: str) -> str:
    r"""A text in plain LaTeX: no symbols of Unicode, no sizes, one name for each font, no dollar signs.

    Example:
      >>> in_latex(r"$\bigl(x²,\tfrac12\bigr)$"), in_latex(r"1{,}000 {\rm cm}"), in_latex(r"90\degree")
      ('(x^{2},\\frac12)', '1000 \\text{cm}', '90^\\circ ')
      >>> in_latex("3{,}14"), in_latex("x₁=2pi"), in_latex(r"2^\frac13"), in_latex(r"\sqrt[3]2")
      ('3.14', 'x_{1}=2\\pi ', '2^{\\frac13}', '\\sqrt[3]{2}')
    """
    text = _SMALL_DIGITS.sub(_as_script, text)
    text = "".join(map(_as_mixed_number, text))
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    for pattern, latex in _SPELLINGS:
        text = pattern.sub(latex, text)
    return text


def _as_script(found: re.Match[str]) -> str:
    return f"{'^' if found[1] else '_'}{{{unicodedata.normalize('NFKC', found[0])}}}"


def _as_mixed_number(character: str) -> str:
    kind, *digits = unicodedata.decomposition(character).split() or [""]
    if kind != "<fraction>":
        return character
    return " " + "".join(chr(int(digit, 16)) for digit in digits).replace("\u2044", "/")
