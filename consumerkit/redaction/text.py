"""Secrets in stored texts: errors in the tables, in the headers of dead letters, and in logs."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final
from urllib.parse import unquote

HIDDEN: Final = "***"
LONGEST: Final = 40_000
"""Characters of a text that are searched; the kept part of a text is far shorter."""

_QUOTED = r"""(?:\b[bru]{1,2})?(?:\\?"(?:[^"\\]|\\.){0,1000}"|\\?'(?:[^'\\]|\\.){0,1000}')"""
_NAMES = (
    r"passwords?|passwd|passphrase|\bpass|pwd|secrets?|tokens?|credentials?|signature|session[_-]?id|cvv|cvc"
    r"|(?:api|access|private|account|subscription|encryption|signing|client)[_-]?key"
)
_AUTHORIZATION = r"authorization\\?[\"']?\s{0,9}[:=,]\s{0,9}+"
_ONE_WORD = r"(?:bearer|basic|token|negotiate)"
# The text that a server adds to its message, and SQLAlchemy to that, has rows, keys and statements:
# up to the next paragraph, hint or traceback. The words are PostgreSQL's in English, and words of
# other languages in plain capitals. `consumerkit.redaction.database_words` needs no words if it has
# the error itself.
_FIELD = (
    r"(?:DETAIL|D[ÉE]TAIL|DETALLE|DETALHE|DETTAGLI|DETALJ|DETAY|CONTEXT|KONTEXT|KONTEKST|CONTEXTE|CONTEXTO|CONTESTO|QUERY"
    r"|ANFRAGE|CONSULTA|ZAPYTANIE)"
)
# A row may have blank lines, so a blank line ends the text only before a traceback's phrase.
_NEXT = r"(?:(?:HINT|TIP)S?: |Traceback \(|During handling|The above exc)"
# The server quotes one line of a statement, and a blank line ends it.
_LINE = (
    r"((?:LINE|ZEILE|LIGNE|LÍNEA|LINHA|LINIA|RIGA|RAD|СТРОКА|РЯДОК) \d{1,9}:)"
    r"\s.*?(?=\n\s{0,9}\n|\n\s{0,99}(?:HINT|TIP)|; caused by |\Z)"
)
_END = rf"(?=\n\s{{0,99}}{_NEXT}|; caused by [A-Za-z_][\w.]{{0,200}}(?:: |\Z)|\Z)"
# A field of a server's report behind its first line, in letters of any script; see `_without_fields`.
_ANY_FIELD = re.compile(
    r"(?:\A|\n|\\n)([^\W\d_]{2,24}(?:[ \u00a0'’][^\W\d_]{1,24})?[ \u00a0]?[:：])([ \u00a0]{1,3})(?=\S)"
)
_END_FOUND = re.compile(_END)
_ROW = (
    r"(?:[Ff]ailing row contains|Fehlgeschlagene Zeile enthält|La ligne en échec contient|La fila que falla contiene"
    r"|Registro que falhou contém|La riga in errore contiene|Ошибочная строка содержит|Помилковий рядок містить"
    r"|Niepoprawny ciąg wierszy|Misslyckande rad innehåller|失敗した行は|失败[,，] 行包含|실패한 자료:)"
)
_OPENS = r"[\"»«„“]"
# PostgreSQL's words before bad data; a value may have quotation marks and line breaks, so it is cut
# to the end.
_BAD = (
    r"(?:(?:invalid input (?:syntax|value) for|ungültige Eingabesyntax für|ungültiger Eingabewert für"
    r"|syntaxe en entrée invalide pour|valeur en entrée invalide pour|sintaxis de entrada no (?:es )?válida para"
    r"|неверный синтаксис для типа|неверное значение для|nieprawidłowa składnia (?:wejścia )?dla"
    r"|sintaxe de entrada é inválida para|sintassi di input non valida per)[^\n:]{1,200}[ \u00a0]?:"
    r'|\binvalid value for parameter "[^"\n]{1,99}":|\binvalid "?\w{1,40}"? value:?|\bcannot cast [\w ]{1,60}:?'
    r"|\bout of range:|\bmalformed [\w ]{1,40} literal:|\bsyntax error in ts\w{1,20}:)"
)
# Text formatted by SQLAlchemy, asyncpg's adapter or us has the error's class or SQLSTATE in front.
_MARKED = re.compile(
    r"(\((?:psycopg2?|asyncpg)\.[\w.]{1,99}\)|<class '(?:psycopg2?|asyncpg)\.[\w.]{1,99}'>:|\b(?:22[0-9A-Z]{3}|42601):)"
    rf"([^\n\"»«„“]{{0,400}}){_OPENS}.*?(?=\n\[|\n[^\W\d_]{{2,24}}[ \u00a0]?[:：]|\n\s{{0,99}}{_NEXT}|; caused by |\Z)",
    re.DOTALL,
)
_ARGUMENT = rf"(?:{_QUOTED}|\\?[\"']?[^\s,;\"')\]}}]+)"
_BETWEEN = r"(?:\\?[\"'],?\s{1,9}|\s{0,9}|=)"
_NEXT_WORD = r"(?:\\?[\"'],?)?\s{1,9}"
_WORD = rf"(?:{_NEXT_WORD}\\?[\"']?[^\s,\"']{{1,200}})"


def _command(names: str) -> str:
    """Return the pattern of a command up to where one of its options begins."""
    return rf"\b(?:{names})\b[^\n]{{0,400}}?[\s\"']"


# Every repetition is bounded or cannot begin where another does, so that no text takes long.
_RULES: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(rf"({_FIELD}\s{{0,3}}:)\s.*?{_END}", re.DOTALL), rf"\g<1> {HIDDEN}"),
    (re.compile(_LINE, re.DOTALL), rf"\g<1> {HIDDEN}"),
    (re.compile(rf"(\[(?:SQL|parameters): ).*?{_END}", re.DOTALL), rf"\g<1>{HIDDEN}]"),
    # `Key (lower(ssn))=(123) already exists` in any language, after its field's name is lost.
    (re.compile(rf"(Key \([^\n]{{1,500}}?\)=)\(.*?{_END}", re.DOTALL), rf"\g<1>({HIDDEN})"),
    (re.compile(rf"({_ROW}\s?)[(（].*?{_END}", re.DOTALL), rf"\g<1>({HIDDEN})"),
    (re.compile(rf"({_BAD}[ \u00a0]?){_OPENS}.*?{_END}", re.DOTALL), rf"\g<1>{HIDDEN}"),
    # A server's CONTEXT, after that word is lost.
    (
        re.compile(rf"(\bCOPY [^\n:]{{1,200}}, line \d{{1,12}}(?:, column [^\n:]{{1,130}})?: ).*?{_END}", re.DOTALL),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(rf"(\bSQL (?:statement|expression) ){_OPENS}.*?{_END}", re.DOTALL), rf"\g<1>{HIDDEN}"),
    (re.compile(r"\b(value )\".*?\"(?= is out of range)", re.DOTALL), rf"\g<1>{HIDDEN}"),
    # asyncpg's words for an argument that it cannot send.
    (re.compile(rf"(query argument \$\d{{1,5}}[^:\n]{{0,99}}: ).*?{_END}", re.DOTALL), rf"\g<1>{HIDDEN}"),
    (_MARKED, lambda found: found[0] if "Violation" in found[1] else f"{found[1]}{found[2]}{HIDDEN}"),
    (re.compile(r"(\)=)\([^\n]*"), rf"\g<1>({HIDDEN})"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
    # A password may contain "@" or "/" that its writer forgot to escape; a port is none.
    (
        re.compile(r"(://[^\s:/@]{0,256}:)(?!\d{1,5}(?:[/?#]|\s|$))(?:[^\s/]{0,256}|[^\s@]{0,256})@"),
        rf"\g<1>{HIDDEN}@",
    ),
    (re.compile(r"\b((?:set-)?cookie\\?[\"']?\s{0,9}[:=]\s{0,9})[^\r\n]+", re.IGNORECASE), rf"\g<1>{HIDDEN}"),
    (
        re.compile(rf"({_AUTHORIZATION}(?:b?\\?[\"'])?{_ONE_WORD}\s{{1,9}})[^\s,;\"'\\]+", re.IGNORECASE),
        rf"\g<1>{HIDDEN}",
    ),
    # URLs of other schemes may have any number of words and fields.
    (
        re.compile(
            rf"({_AUTHORIZATION})(?!(?:b?\\?[\"'])?{_ONE_WORD}\s)(?:{_QUOTED}|(?!b?\\?[\"']|[*]{{3}})[^\r\n]{{1,2000}})",
            re.IGNORECASE,
        ),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(r"\b(bearer|basic)(\s{1,9})[\w.~+/=-]{16,}", re.IGNORECASE), rf"\g<1>\g<2>{HIDDEN}"),
    (
        re.compile(
            rf"((?:{_NAMES})(?:[_-]?(?:key|value|id))?\\?[\"']?\s{{0,9}}(?:=>|:=|[:=])\s{{0,9}}+"
            rf"(?:[\w.]{{0,40}}[\[({{]\s{{0,3}})?)"
            rf"(?:{_QUOTED}|\\?[\"']?[^\s,;&\"')}}\]]+)",
            re.IGNORECASE,
        ),
        rf"\g<1>{HIDDEN}",
    ),
    # Short options have no name to find: each belongs to its command. A list of arguments has
    # quotation marks between.
    (re.compile(rf"({_command('mysql[a-z]*|mariadb[a-z-]*')}-p){_ARGUMENT}"), rf"\g<1>{HIDDEN}"),
    (
        re.compile(
            rf"({_command('curl|wget|httpie|https?')}(?:-[uUa]|--(?:proxy-)?user|--auth){_BETWEEN}\\?[\"']?[^\s:\"']{{1,99}}:){_ARGUMENT}"
        ),
        rf"\g<1>{HIDDEN}",
    ),
    (
        re.compile(
            rf"((?:{_command('sshpass|mongo[a-z]*|(?:docker|podman|helm|az|oc) [a-z ]{0,20}login')}-p"
            rf"|{_command('redis-cli')}-a|{_command('ldap[a-z]+')}-w|{_command('sqlcmd|bcp')}-P){_BETWEEN})"
            rf"{_ARGUMENT}"
        ),
        rf"\g<1>{HIDDEN}",
    ),
    (
        re.compile(rf"({_command('htpasswd')}-[a-zA-Z]{{0,9}}b[a-zA-Z]{{0,9}}{_WORD}{{1,2}}{_NEXT_WORD}){_ARGUMENT}"),
        rf"\g<1>{HIDDEN}",
    ),
    # An option of a command, a pair, an element of XML.
    (
        re.compile(
            rf"(\B--?[\w-]{{0,40}}(?:{_NAMES})(?:[_-]?(?:key|value|id))?(?:\\?[\"']\s{{0,9}},\s{{0,9}}|\s{{1,9}}))"
            rf"(?:{_QUOTED}|\\?[\"']?[^\s,;&\"')}}\]]+)",
            re.IGNORECASE,
        ),
        rf"\g<1>{HIDDEN}",
    ),
    (
        re.compile(rf"((?:{_NAMES})(?:[_-]?(?:key|value|id))?\\?[\"']\s{{0,9}},\s{{0,9}})(?:{_QUOTED})", re.IGNORECASE),
        rf"\g<1>{HIDDEN}",
    ),
    (
        re.compile(
            rf"(<[\w.:-]{{0,40}}(?:{_NAMES})(?:[_-]?(?:key|value|id))?(?:\s[^<>]{{0,200}})?>)(?:<!\[CDATA\[.{{0,2000}}?\]\]>|[^<]{{1,2000}})",
            re.IGNORECASE,
        ),
        rf"\g<1>{HIDDEN}",
    ),
    (
        re.compile(
            rf"((?:{_NAMES})(?:\s(?:is|was)\s|\\?[\"']\s{{1,9}}value\s{{0,9}}=\s{{0,9}}))(?:{_QUOTED})", re.IGNORECASE
        ),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"), HIDDEN),
    (
        re.compile(
            r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|A[KS]IA[0-9A-Z]{16}"
            r"|[srp]k[-_](?:live|test|proj|ant)[-_][\w-]{10,})"
        ),
        HIDDEN,
    ),
)
_WRAPPINGS: Final = 3
"""Nested escapes that are undone."""
_BYTES = re.compile(r"(?:\\x[89a-fA-F][0-9a-fA-F]){2,}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([\"'\\/nrtbf]))")
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_LETTERS: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_DIGITS = re.compile(r"\d+(?:[ -]\d+)*")
_CARD_DIGITS = range(13, 20)


def redact(text: str) -> str:
    """Return a text with obvious secrets replaced by `***`.

    Those are: passwords in URLs; what follows `password=`, `token:`, `api_key=` and the like;
    `Authorization` headers, `Bearer ...`, cookies; private keys, JSON web tokens and the tokens of
    well-known services; card numbers (runs of 13 to 19 digits that begin with 2 to 6 and pass
    Luhn's check); and what a database adds to its message: DETAIL and CONTEXT, with keys and rows,
    and statements with their parameters. It does not find every secret: keep secrets and payloads
    out of errors. A text of more than 40,000 characters is cut there.

    Example:
        >>> redact("cannot reach postgresql://app:hunter2@db/shop for card 4111 1111 1111 1111")
        'cannot reach postgresql://app:***@db/shop for card ***'
    """
    text = _ruled(text[:LONGEST])
    # JSON, HTML, URLs and `repr` escape line breaks and quotation marks, by which secrets are found.
    plain = text
    for _ in range(_WRAPPINGS):
        if (unwrapped := _unescaped(plain)) == plain:
            break
        plain = unwrapped
        if (ruled := _ruled(plain)) != plain:
            text = plain = ruled
    return text


def _ruled(text: str) -> str:
    text = _without_fields(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return _DIGITS.sub(_without_cards, text)


def _unescaped(text: str) -> str:
    """Return a text with one layer of escapes undone, of JSON, Python, HTML or a URL."""
    if "\\" in text:
        text = _ESCAPE.sub(_character, _BYTES.sub(_characters, text))
    if "&" in text:
        text = html.unescape(text)
    return unquote(text) if _PERCENT.search(text) else text


def _characters(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("\\x", "")).decode("utf-8", "replace")


def _character(found: re.Match[str]) -> str:
    if (digits := found[1] or found[2] or found[3]) is None:
        return _LETTERS.get(found[4], found[4])
    number = int(digits, 16)
    return chr(number) if number <= sys.maxunicode else found[0]


def _without_fields(text: str) -> str:
    """Cut the fields behind a server's first line; each follows a word in capitals of its language.

    English hints stay. A word of ASCII alone needs the two spaces that libpq writes after it,
    unlike a `NOTE: `.
    """
    at = 0
    while (found := _ANY_FIELD.search(text, at)) is not None:
        label, spaces = found[1], found[2]
        at = found.end(1)
        if label.upper() != label or label.startswith(("HINT", "TIP")) or (label.isascii() and len(spaces) < 2):
            continue
        end = _END_FOUND.search(text, at)
        text = f"{text[:at]} {HIDDEN}{text[end.start() if end else len(text) :]}"
    return text


def _without_cards(found: re.Match[str]) -> str:
    """Hide the card numbers among groups of digits; a card number consists of whole groups."""
    run = found[0]
    parts = re.split(r"([ -])", run)
    groups, separators = parts[0::2], [*parts[1::2], ""]
    kept, at = [], 0
    while at < len(groups):
        count = _card_at(groups, at)
        kept += [HIDDEN if count else groups[at], separators[at + max(count, 1) - 1]]
        at += max(count, 1)
    return "".join(kept)


def _card_at(groups: list[str], at: int) -> int:
    """Return the number of groups in the card number that begins here; 0 if none begins."""
    if groups[at][0] not in "23456":
        return 0
    for count, digits in enumerate(_joined(groups, at), 1):
        if len(digits) in _CARD_DIGITS and _passes_luhn(digits):
            return count
    return 0


def _joined(groups: list[str], at: int) -> Iterator[str]:
    for digits in accumulate(groups[at : at + _CARD_DIGITS.stop]):
        if len(digits) >= _CARD_DIGITS.stop:
            return
        yield digits


def _passes_luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[0::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])) % 10 == 0
