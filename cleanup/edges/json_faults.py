"""Says what is wrong with a text that is not valid JSON, by its true name.

A second, more lenient parser tells apart what the first one only refuses: Python's takes numbers and characters that
JSON does not know, and asks about each number.
"""

from __future__ import annotations

import json
import math

import orjson

from cleanup.input_limits import MAX_DEPTH
from cleanup.text_files import BOM, TextError, decode_text

_MAX_SHOWN = 40


class _OddNumberError(Exception):
    """A number that is none in JSON."""


def explain_json_error(content: bytes, error: orjson.JSONDecodeError) -> str:
    """What is wrong with a text.

    Args:
        content: A line, or a whole document; a byte order mark at the start of a file is none of it any more.
        error: What the parser says.
    """
    where = f"at column {error.colno}"
    if content.startswith(BOM):
        return "begins with a byte order mark, which may stand at the start of a file only; remove it"
    try:
        value = json.loads(
            decode_text(content), parse_constant=_refuse_constant, parse_float=_check_number, parse_int=_check_number
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (TextError, _OddNumberError) as fault:
        return str(fault)
    except RecursionError:
        return f"nested deeper than {MAX_DEPTH} levels"
    except UnicodeEncodeError:
        return f"holds one half of a surrogate pair, which is no character, in the string {where}"
    except json.JSONDecodeError:
        pass  # neither parser can read it; the first one's words are the better ones
    return f"not valid JSON ({error.msg} {where}); it is cut off or damaged"


def _refuse_constant(word: str) -> float:
    raise _OddNumberError(f"holds {word}, which is not JSON; an embedding or a number in it is not finite")


def _check_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
        raise _OddNumberError(f"holds {shown}, a number too large for a double")
    return number
