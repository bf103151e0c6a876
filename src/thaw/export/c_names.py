"""Names in exported C: one prefix for all symbols, macros and files of a model, so that models link into one program.

The fragments in `thaw/export/c` use the prefix `thaw`. An export replaces it by the model's, in capitals for macros.
`THAW_PORTABLE` and `THAW_TRACE` keep their names, since they apply to a whole build.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection

from thaw.errors import ModelFileError, UsageError
from thaw.quoting import shown

FIXED_PREFIX = "model"
"""The prefix of model.h and model.c, which every export contains."""

MOST_LETTERS = 31
"""C99 linkers compare only the first 31 characters of a name (5.2.4.1)."""

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_DIGEST_LETTERS = 6

# Keywords of C23 and C++20, except those with a leading underscore, which is refused in any name.
_KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
concept const const_cast consteval constexpr constinit continue co_await co_return co_yield decltype default delete do
double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable namespace
new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires restrict
return short signed sizeof static static_assert static_cast struct switch template this thread_local throw true try
typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile wchar_t while xor xor_eq
"""

# C23 names the widths of its integer types like this, in limits.h and stdint.h; compilers define them for earlier
# standards too.
_WIDTHS = re.compile(
    r"bool|[su]?char|u?(shrt|int|long|llong|intptr|intmax)|u?int(_fast|_least)?[0-9]+|ptrdiff|size|sig_atomic|wchar|wint",
    re.ASCII,
)

# The example's main.c; headers of C, POSIX, x86, Linux and common libraries, which NAME.h would hide from a compiler
# that searches its folder; and device names of Windows.
_TAKEN_FILES = """
main
assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic stdbit
stdbool stdckdint stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype
aio cpio dirent dlfcn endian fcntl features fmtmsg fnmatch ftw getopt glob grp iconv langinfo libgen malloc memory
monetary mqueue ndbm netdb poll pthread pwd regex sched search semaphore spawn strings stropts syslog tar termios
ucontext ulimit unistd utime utmpx values wordexp immintrin
alloca byteswap crypt elf err error execinfo fts link mntent obstack paths printf pty resolv shadow
arduino curses form jpeglib lzma menu panel png sqlite3 tiff windows zconf zlib
aux con nul prn com1 com2 com3 com4 com5 com6 com7 com8 com9 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
"""


def check_prefix(prefix: str) -> str:
    """`prefix`, if it is a C identifier that C, C++ and file systems do not reserve.

    Raises:
        UsageError: otherwise, with the reason and a valid prefix.
    """
    if not isinstance(prefix, str):
        raise UsageError(f"prefix {shown(prefix)}: expected a string", code="usage-prefix")
    kind, fault = _fault(prefix)
    if fault:
        hint = f"(try {prefix_of_name(prefix[:60])!r})"
        raise UsageError(f"prefix {prefix[:60]!r} {fault} {hint}", code=f"usage-prefix-{kind}")
    return prefix


def prefix_of_name(name: str) -> str:
    """The prefix for a model called `name`: its letters a to z and digits, with one underscore for anything between.

    Accents are dropped. An invalid prefix gets "model_" in front. If letters of other scripts are lost, or the prefix
    exceeds `MOST_LETTERS`, six hexadecimal digits of the name's SHA-256 make it unique.
    """
    letters = [letter for letter in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(letter)]
    prefix = "_".join(re.findall(r"[a-z0-9]+", "".join(letters))) or FIXED_PREFIX
    if any(_fault(prefix[:MOST_LETTERS].rstrip("_"))):
        prefix = f"{FIXED_PREFIX}_{prefix}"
    has_lost_letters = any(letter.isalnum() and not letter.isascii() for letter in letters)
    if has_lost_letters or len(prefix) > MOST_LETTERS:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LETTERS]
        prefix = f"{prefix[: MOST_LETTERS - 1 - _DIGEST_LETTERS].rstrip('_')}_{digest}"
    return prefix


def _fault(prefix: str) -> tuple[str, str]:
    """(Kind, description) of the fault of an invalid prefix; empty strings if it is valid."""
    small = prefix.lower()
    faults = (
        (
            prefix.startswith("_") or "__" in prefix,
            "reserved",
            "is reserved: C and C++ reserve names with a leading or a double underscore",
        ),
        (
            not _IDENTIFIER.fullmatch(prefix),
            "identifier",
            "is not a C identifier: expected letters a to z, digits and underscores, beginning with a letter",
        ),
        (prefix.endswith("_"), "underscore", "ends in an underscore, which thaw adds: NAME_predict would have two"),
        (len(prefix) > MOST_LETTERS, "length", f"has {len(prefix)} characters: expected at most {MOST_LETTERS}"),
        (small in _KEYWORDS.split(), "keyword", "is a keyword of C or C++"),
        (
            _WIDTHS.fullmatch(small) is not None,
            "reserved",
            f"is reserved: C defines {small.upper()}_WIDTH as the bits of a type",
        ),
        (
            small in _TAKEN_FILES.split(),
            "file",
            "conflicts with another file: main.c, a system header, or a device",
        ),
    )
    return next(((kind, fault) for is_so, kind, fault in faults if is_so), ("", ""))


def with_prefix(text: str, prefix: str) -> str:
    """C with `prefix` in place of the prefix `thaw`."""
    text = re.sub(r"\bthaw_(?=\w)", f"{prefix}_", text)
    return re.sub(r"\bTHAW_(?!(?:PORTABLE|TRACE)\b)(?=\w)", f"{prefix.upper()}_", text)


def prefix_of_files(names: Collection[str]) -> str:
    """The prefix of an exported folder, from the names of its files.

    Raises:
        ModelFileError: without a header and a source named by a valid prefix.
    """
    headers = [name.removesuffix(".h") for name in names if name.endswith(".h")]
    prefix = next((name for name in headers if name != FIXED_PREFIX), FIXED_PREFIX)
    missing = [name for name in (f"{prefix}.h", f"{prefix}.c") if name not in names]
    if missing or any(_fault(prefix)):
        what = f"no {missing[0]}" if missing else f"a header {prefix}.h that thaw does not write"
        raise ModelFileError(f"the c export has {what}\nexport it again with thaw export", code="model-file-export")
    return prefix
