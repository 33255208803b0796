"""The C code of c_export.py: products with matrices, loops, functions, the header around them. No torch, no nets.

A piece of code is a list of lines. The weights that it reads lie one after the other in the order in which it does: the
C pointer w stands at the first of them before and behind the last afterwards.
"""

import textwrap
from itertools import pairwise
from typing import NamedTuple

import numpy as np

LONGEST_ROW = 24  # of a matrix whose rows are written out as sums; the inputs then fit into 32 registers
LARGEST_MATRIX = 24  # entries of a matrix of which all rows are written out
ROWS_AT_A_TIME, COLUMNS_AT_A_TIME = 8, 2  # of larger matrices; an input that is read serves all these rows


class CFunction(NamedTuple):
    """void name(const float *u, float *y)"""
    where: str  # the submodule that it computes
    name: str
    description: str
    nb_inputs: int
    nb_outputs: int
    nb_multiply_adds: int
    arrays: dict  # {name in C: weights}
    lines: list  # between the braces
    nb_scratch: int = 0  # floats on the stack


# ---- lines ----

def write_product(comment, target, matrix, operands, bias=None, add=False, finish="{}"):
    """target = finish(matrix [operands] + bias), or with add=True finish(target + matrix [operands]).

    :param target: name of a vector in C
    :param matrix: array
    :param operands: {vector in C: entries}; together they have one for each column of the matrix
    :param bias: array with one entry for each row, or None
    :param finish: C expression of what is made of an output
    :return: weights, lines. Of rows that are computed together the biases come first, then the matrix column by column.
    """
    if not matrix.size:
        return [], []
    weights = matrix if bias is None else np.hstack((bias[:, None], matrix))
    (nb_rows, nb_columns), nb_biases = weights.shape, int(bias is not None)
    is_long = nb_columns > LONGEST_ROW
    rows_at_a_time = ROWS_AT_A_TIME if is_long else nb_rows if weights.size <= LARGEST_MATRIX else 1

    def write_rows(i, nb):
        """Rows i .. i + nb - 1"""
        places = [f"{target}[{_add(i, r)}]" for r in range(nb)]
        starts = [places[r] if add else f"w[{r}]" if nb_biases else "" for r in range(nb)]

        def write_sums(starts, factors, column):
            products = [[f"w[{r + nb * c}] * {factor}" for c, factor in enumerate(factors, column)] for r in range(nb)]
            return [" + ".join([start] * (start != "") + terms) for start, terms in zip(starts, products)]

        if not is_long:
            factors = [f"{vector}[{j}]" for vector, size in operands.items() for j in range(size)]
            return [*(f"{place} = {finish.format(total)};"
                      for place, total in zip(places, write_sums(starts, factors, nb_biases))),
                    f"w += {nb * nb_columns};"]
        sums = [f"s{r}" for r in range(nb)]
        lines = ["float " + ", ".join(f"{s} = {start or '0.0f'}" for s, start in zip(sums, starts)) + ";"]
        lines += [f"w += {nb};"] * nb_biases
        for vector, size in operands.items():
            def write_columns(j, nb_factors):
                totals = write_sums(sums, [f"{vector}[{_add(j, c)}]" for c in range(nb_factors)], 0)
                return [*(f"{s} = {total};" for s, total in zip(sums, totals)), f"w += {nb * nb_factors};"]
            lines += write_loop("j", size, COLUMNS_AT_A_TIME, write_columns)
        return lines + [f"{place} = {finish.format(s)};" for place, s in zip(places, sums)]

    return (np.concatenate([weights[i:i + rows_at_a_time].T.ravel() for i in range(0, nb_rows, rows_at_a_time)]),
            [f"/* {comment}{' + bias' * nb_biases} */", *write_loop("i", nb_rows, rows_at_a_time, write_rows)])


def write_copy(source, target, size):
    return write_loop("i", size, 4, lambda i, nb: [
        f"{target}[{_add(i, j)}] = {source}[{_add(i, j)}];" for j in range(nb)])


def write_loop(index, size, step, write):
    """Lines of write(index, step) for index = 0, step, 2 step, ..., then of write(number, rest) for what is left."""
    nb_left = size % step
    end = size - nb_left
    lines = []
    if end > step:
        advance = f"{index}++" if step == 1 else f"{index} += {step}"
        lines = [f"for (int {index} = 0; {index} < {end}; {advance}) {{", *_indent(write(index, step)), "}"]
    for start, nb in (0, step if end == step else 0), (end, nb_left):
        part = write(start, nb) if nb else []
        declares = part and part[0].startswith("float")  # which needs a scope
        lines += ["{", *_indent(part), "}"] if declares else part
    return lines


def join(*pieces):
    """Pieces of code, each (weights, lines), one after the other."""
    return np.concatenate([weights for weights, _ in pieces]), [line for _, lines in pieces for line in lines]


def _add(place, offset):
    return place + offset if isinstance(place, int) else f"{place} + {offset}" if offset else place


def _indent(lines):
    return [f"    {line}" for line in lines]


# ---- text ----

def write_header(name, title, nb_parameters, made_with, functions, test):
    """The whole file.

    :param functions: CFunctions, which pass their outputs on to each other
    :param test: what write_test gives, or nothing
    """
    NAME, nb_inputs, nb_outputs = name.upper(), functions[0].nb_inputs, functions[-1].nb_outputs
    nb_weights = sum(len(weights) for function in functions for weights in function.arrays.values())
    # The functions write to one of two arrays in turn and read the other.
    sizes = [max([function.nb_outputs for function in functions[i:-1:2]], default=0) for i in (0, 1)]
    nb_scratch = sum(sizes) + max(function.nb_scratch for function in functions)
    vectors = ["x", *(f"h{i % 2}" for i in range(len(functions) - 1)), "scores"]
    layers = "\n".join(f"     {function.where or 'layer'}: {function.description}, "
                       f"{function.nb_inputs} -> {function.nb_outputs}" for function in functions)
    lines = "\n".join(_indent([f"float h{i}[{size}];" for i, size in enumerate(sizes) if size] + [
        f"{function.name}({source}, {target});" for function, (source, target) in zip(functions, pairwise(vectors))]))
    definitions = ["".join(_write_array(array, values) for array, values in function.arrays.items()) + f"""
/* {function.where or "layer"}: {function.description} */
static inline void {function.name}(const float *{NAME}_RESTRICT u, float *{NAME}_RESTRICT y)
{{
""" + "\n".join(map(_wrap, _indent(["const float *w;", *function.lines]))) + "\n}\n\n" for function in functions]
    return f"""\
/* {name}: {title}

{layers}

   {nb_parameters} parameters
   {sum(function.nb_multiply_adds for function in functions)} multiply-adds in a call
   {4 * nb_weights} bytes of weights
   {4 * nb_scratch} bytes of arrays on the stack

   Images are channels-first; x and scores must not overlap.
   Made by export_to_c with {made_with}. */

#ifndef {NAME}_H
#define {NAME}_H

#define {NAME}_INPUT_SIZE {nb_inputs}
#define {NAME}_OUTPUT_SIZE {nb_outputs}

#ifdef __cplusplus
#define {NAME}_RESTRICT __restrict
#else
#define {NAME}_RESTRICT restrict
#endif

static inline float {name}_relu(float s)
{{
    return s < 0.0f ? 0.0f : s;
}}

{"".join(definitions)}\
/* what softmax is applied to */
static inline void {name}_scores(const float *x, float *scores)
{{
{lines}
}}

/* the most probable class */
static inline int {name}_classify(const float *x)
{{
    float scores[{nb_outputs}];
    int best = 0;
    {name}_scores(x, scores);
    for (int i = 1; i < {nb_outputs}; i++)
        if (scores[i] > scores[best])
            best = i;
    return best;
}}

{test}#undef {NAME}_RESTRICT
#endif
"""


def _wrap(line):
    """In at most 120 columns. Sums are broken before a term."""
    indentation = " " * (len(line) - len(line.lstrip()) + 8)
    return textwrap.fill(line.replace(" * ", "\0*\0"), 120, subsequent_indent=indentation).replace("\0", " ")


def _write_array(name, values):
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has entries that are NaN, infinite or beyond float32")
    # Nine digits tell all float32 numbers apart.
    numbers = [f"{x}f" if "." in x or "e" in x else f"{x}.0f" for x in map("{:.9g}".format, values.tolist())]
    rows = _indent(", ".join(numbers[i:i + 8]) + "," for i in range(0, len(numbers), 8))
    return "\n".join([f"static const float {name}[{len(numbers)}] = {{", *rows, "};", ""])


def write_test(name, inputs, scores):
    """The text of name_test, for arrays (samples, inputs) and (samples, scores)."""
    nb_samples, nb_inputs, nb_outputs = *inputs.shape, scores.shape[1]
    return f"""\
#ifdef {name.upper()}_TEST
{_write_array(f"{name}_test_inputs", inputs.ravel())}\
{_write_array(f"{name}_test_scores", scores.ravel())}
/* the largest absolute difference from PyTorch's scores of these inputs */
static inline float {name}_test(void)
{{
    float largest = 0.0f, scores[{nb_outputs}];
    for (int i = 0; i < {nb_samples}; i++) {{
        {name}_scores({name}_test_inputs + {nb_inputs} * i, scores);
        for (int j = 0; j < {nb_outputs}; j++) {{
            float difference = scores[j] - {name}_test_scores[{nb_outputs} * i + j];
            if (difference < 0.0f)
                difference = -difference;
            if (difference > largest || difference != difference) /* NaN stays */
                largest = difference;
        }}
    }}
    return largest;
}}
#endif

"""
