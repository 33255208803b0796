"""What identifies a run and what it depends on: seeds, and digests of arrays and of code, without its comments,
docstrings and layout.

Imports nothing but the standard library.
"""

import ast
import hashlib
import inspect
import os
import re
import sys
import tokenize
from functools import lru_cache
from itertools import product
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# What a script sets in its ruled-off block is kept and compared by name, so it is no part of the code.
_HYPERPARAMETERS = re.compile(r"^# =+\n# Hyperparameters\n.*?^# =+\n", re.DOTALL | re.MULTILINE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NAMELESS = ""  # stands for the statements of a file that define no name, as calls that set something


def derive_seed(*identity):
    """A seed (int, 32 bits) that depends on the identity of what it is for, plain values, and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:4], "little")


def digest_arrays(*arrays):
    """Digest (str) of NumPy arrays: of the dtype, shape and values of each, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.ravel())
    return digest.hexdigest()


def digest_code(*definitions, ignored=()):
    """Digest (str) of functions and classes, and of all code of this project that they can reach.

    A function, class or variable reaches those at the top level of its file that it names, and through imports those of
    other files; it also reaches the statements of its file that define no name. Libraries are not followed.

    :param definitions: functions and classes; a pathlib.Path stands for all of a script, None for nothing
    :param ignored: names that are not followed
    """
    code, waiting = {}, [_get_place(definition) for definition in definitions if definition]
    while waiting:
        file, name = place = waiting.pop()
        if place not in code and name not in ignored:
            if file is None:  # what cannot be compared counts as changed
                code[place] = [os.urandom(16).hex()]
            else:
                code[place], reached = _examine(file, _read(file), name)
                waiting += reached
    return hashlib.blake2b("\n".join(sorted(sum(code.values(), []))).encode(), digest_size=16).hexdigest()


def list_imported_files(file):
    """Paths of the project's files that a script imports, and of itself, each after those that importing it needs."""
    files, visited = [], set()

    def visit(file):
        if file in visited:
            return
        visited.add(file)
        later = []  # what functions import when they are called
        for statement in ast.parse(_read(file)).body:
            for node in ast.walk(statement):
                for imported, _ in _find_imported(file, node):
                    if isinstance(statement, _DEFINITIONS):
                        later.append(imported)
                    else:
                        visit(imported)
        files.append(file)
        for imported in later:
            visit(imported)

    visit(Path(file).resolve())
    return files


def _get_place(definition):
    """(path of the script, name there, or None for all of it) of a function or class; (None, ...) if there is none."""
    if isinstance(definition, Path):
        return definition.resolve(), None
    if inspect.isclass(definition) or inspect.isfunction(definition):
        module, code = sys.modules.get(definition.__module__), getattr(definition, "__code__", None)
        # The second one is there if a notebook runs a script as its own.
        for file in (getattr(module, "__file__", None), getattr(code, "co_filename", None)):
            if file and file.endswith(".py") and Path(file).is_file():
                return Path(file).resolve(), definition.__qualname__.split(".")[0]
    return None, repr(definition)


def _read(file):
    with tokenize.open(file) as script:  # in the encoding that it declares, without a byte order mark
        return script.read()


@lru_cache(maxsize=None)
def _examine(file, text, name):
    """(code, places that it reaches) of a name at the top level of a script, or None for all of it; lists."""
    definitions = _get_definitions(text)
    # A name that is not among them may come from anywhere in the file.
    statements = definitions[name] if name in definitions else sum(definitions.values(), [])
    reached = [(file, _NAMELESS)]
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Name) and node.id in definitions:
            reached.append((file, node.id))
        reached += _find_imported(file, node)
    return [repr(_as_plain_data(statement)) for statement in statements], reached


@lru_cache(maxsize=None)
def _get_definitions(text):
    """{name at the top level of a script: the statements (list of ast nodes) that define it}"""
    definitions = {_NAMELESS: []}
    for statement in ast.parse(_HYPERPARAMETERS.sub("", text)).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:  # one by one, for an import beside it changes nothing
                single = (ast.Import([alias]) if isinstance(statement, ast.Import)
                          else ast.ImportFrom(statement.module, [alias], statement.level))
                name = alias.asname or alias.name.split(".")[0]
                definitions.setdefault(_NAMELESS if name == "*" else name, []).append(single)
        elif not _is_docstring(statement) and not _is_main_guard(statement):
            for name in _get_defined_names(statement) or [_NAMELESS]:
                definitions.setdefault(name, []).append(statement)
    return definitions


def _get_defined_names(statement):
    """Names that a function, class or assignment defines; none for any other statement."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        return []
    targets = getattr(statement, "targets", None) or [statement.target]
    return [getattr(node, "id", _NAMELESS) for target in targets for node in ast.walk(target)
            if isinstance(getattr(node, "ctx", None), ast.Store) and not isinstance(node, (ast.Tuple, ast.List))]


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_main_guard(node):
    return isinstance(node, ast.If) and any(isinstance(each, ast.Name) and each.id == "__name__"
                                            for each in ast.walk(node.test))


def _as_plain_data(node):
    """A syntax tree as nested tuples, without docstrings, and without the empty fields that vary between Pythons."""
    if isinstance(node, list):
        return tuple(_as_plain_data(each) for each in node if not _is_docstring(each))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _as_plain_data(value)) for name, value in ast.iter_fields(node))
    return type(node).__name__, *(field for field in fields if field[1] not in (None, ()))


def _find_imported(file, node):
    """(path, name or None for all of it) of each thing that a statement imports from the project's files."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return
    folders = [file.parents[node.level - 1]] if getattr(node, "level", 0) else [FOLDER, file.parent]
    for alias in node.names:
        places = [(alias.name, None)]
        if isinstance(node, ast.ImportFrom):  # which may name a module of a package, or something in a module
            module = node.module or ""
            places = [(f"{module}.{alias.name}", None), (module, None if alias.name == "*" else alias.name)]
        for folder, (module, name) in product(folders, places):
            path = folder.joinpath(*filter(None, module.split(".")))
            if found := next(filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py")), None):
                yield found, name
                break
