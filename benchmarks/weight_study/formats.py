"""The formats of benchmarks/weight_formats.py: functions that round a matrix and expand it again, and their bits."""
import ctypes
import math

import numpy

from weight_study.models import to_bfloat16

f32 = numpy.float32


def code_of_scale(scale):
    """10 bits: no sign, 5 of exponent, 5 of mantissa; 2^-24 .. 1.97 * 2^7. Rounded to the nearest."""
    bits = numpy.ascontiguousarray(scale, f32).view(numpy.int32).astype(numpy.int64)
    return numpy.clip(((bits + (1 << 17)) >> 18) - ((127 - 24) << 5), 0, 1023)


def scale_of_code(code):
    return ((code + ((127 - 24) << 5)) << 18).astype(numpy.uint32).view(f32)


def short(scale, group_rows):
    return scale_of_code(code_of_scale(scale))


def half(scale, group_rows):
    return scale.astype(numpy.float16).astype(f32)


def bfloat16_up(scale, group_rows):
    return ((scale.view(numpy.uint32) + 0xFFFF) & 0xFFFF0000).astype(numpy.uint32).view(f32)


def single(scale, group_rows):
    return scale


def of_row(bits):
    """A linear scale in steps of the row's largest / (2^bits - 1)."""
    def stored(scale, group_rows):
        step = numpy.repeat(group_rows.max(1), group_rows.shape[1]) / f32(2**bits - 1)
        return numpy.clip(numpy.rint(scale / numpy.where(step > 0, step, 1)), 1, 2**bits - 1) * step
    return stored


FEW = [2 ** (k / 24) for k in (-5, -3, -1, 1)]  # a step of the 10-bit scale is 2.2 to 3.1 %
MANY = [2 ** (k / 24) for k in range(-6, 2)]


class Affine:
    """value = scale * (code - zero), code 0 .. levels - 1, in groups of `group` columns (0: the row).

    `scale_bits` and `scale` (see above) say how a group's scale is kept. `zero_steps` of a code are a step of the zero,
    kept in `zero_bits`; 0 steps: the minimum -scale * zero is kept, as float16; None: zero is the middle, not kept, and
    the scale has a sign, so that the largest magnitude may have the code with no counterpart. `row_bits` a row.

    The search tries scales `factors` * range / (levels - 1) as kept and, for each, the zeros which put the smallest
    weight on the first code, the largest on the last (`anchors` 0 and 1), or both equally off (0.5), `moves` times
    corrected by the mean error; it takes the least squared error, summed as the C++ code does for groups of 32.
    `power` weighs the squares with |w|^power. Without factors: scale and zero are those of the range.
    """

    def __init__(self, group, scale_bits, scale, zero_bits=0, zero_steps=None, row_bits=0, levels=16, factors=(1,),
                 anchors=(0, 1), moves=0, power=0, then=None):
        self.__dict__.update(locals())

    def bits(self, columns):
        groups = -(-columns // (self.group or columns))
        code_bits = (self.levels - 1).bit_length()
        return code_bits * columns + (self.scale_bits + self.zero_bits) * groups + self.row_bits

    def zero(self, scale, anchor, low, high):
        """The zero that puts the point `anchor` of the range on the same point of the codes."""
        inverse = 1 / scale
        exact = f32((self.levels - 1) * anchor) - (low + (high - low) * f32(anchor)) * inverse
        return self.kept_zero(scale, exact)

    def kept_zero(self, scale, zero):
        if self.zero_steps == 0:
            return half(-scale * zero, None) / -scale
        steps = f32(self.zero_steps)
        return numpy.clip(numpy.rint(steps * zero), 0, f32(2**self.zero_bits - 1)) / steps

    def __call__(self, weights):
        rows, columns = weights.shape
        group = self.group or columns
        groups = -(-columns // group)
        padded = numpy.zeros((rows, groups * group), f32)
        padded[:, :columns] = weights
        out = numpy.empty_like(padded)
        at_once = max(1, (1 << 19) // padded.shape[1])  # what stays in a cache
        for i in range(0, rows, at_once):
            part = padded[i:i + at_once]
            out[i:i + at_once] = self.rounded(part.reshape(-1, group), len(part)).reshape(part.shape)
        out = out[:, :columns]
        return self.then(out) if self.then else out

    def rounded(self, x, rows):
        top = f32(self.levels - 1)
        low, high = numpy.minimum(x.min(1), 0), numpy.maximum(x.max(1), 0)
        if self.zero_steps is None:
            # An even number of levels has a code more on one side (-8 .. 7): the largest magnitude gets it.
            middle = f32(self.levels // 2)
            largest = numpy.where(high > -low, high, low)
            start = -largest / middle if self.levels % 2 == 0 else abs(largest) / middle
        else:
            start = (high - low) * f32(1 / (self.levels - 1))
        rows_of = start.reshape(rows, -1)
        weight = abs(x) ** self.power if self.power else None
        best = numpy.full(len(x), numpy.inf, f32)
        best_scale, best_zero = numpy.ones_like(best), numpy.zeros_like(best)
        for factor in self.factors:
            if self.scale is short:  # neighbouring codes, as the C++ code does
                scale = scale_of_code(numpy.clip(code_of_scale(start) + round(24 * math.log2(factor)), 0, 1023))
            else:
                scale = self.scale((start * f32(factor)).astype(f32), rows_of)
            scale = numpy.where(scale == 0, f32(1), scale).astype(f32)
            y = x * (1 / scale)[:, None]
            for anchor in self.anchors if self.zero_steps is not None else (0,):
                if self.zero_steps is None:
                    zero = middle + numpy.zeros_like(scale)
                else:
                    zero = self.zero(scale, anchor, low, high)
                for move in range(self.moves + 1):
                    t = y + zero[:, None]
                    d = t - numpy.clip(numpy.rint(t), 0, top)
                    error = (self.squares(d) if weight is None else (weight * d * d).sum(1)) * (scale * scale)
                    better = error < best
                    best[better], best_scale[better], best_zero[better] = error[better], scale[better], zero[better]
                    if move < self.moves and self.zero_steps is not None:
                        zero = self.kept_zero(scale, zero - d.mean(1))
        scale, zero = best_scale[:, None], best_zero[:, None]
        return scale * (numpy.clip(numpy.rint(x * (1 / scale) + zero), 0, top) - zero)

    @staticmethod
    def squares(d):
        """Sums of squares of groups, four sums of every fourth, one after the other, then ((0 + 2) + (1 + 3))."""
        if d.shape[1] != 32:
            return (d * d).sum(1)
        sums = numpy.zeros((len(d), 4), f32)
        for i in range(0, 32, 4):
            sums += d[:, i:i + 4] * d[:, i:i + 4]
        return (sums[:, 0] + sums[:, 2]) + (sums[:, 1] + sums[:, 3])


class Taken:
    """What `src/packing` makes: codes in groups of columns, each with a scale of 8 bits: a sign, 4 bits of exponent from
    `least` on and 3 of mantissa. The scale is the one with the least squared error of those of either sign (`signs`)
    under which the largest magnitude takes a code of magnitude `outermost`, were there as many."""

    def __init__(self, group, lowest, highest, outermost, least, signs):
        self.__dict__.update(locals())

    def bits(self, columns):
        code_bits = (self.highest - self.lowest).bit_length()
        return code_bits * columns + 8 * -(-columns // self.group)

    def byte_below(self, magnitude):
        exponent = numpy.floor(numpy.log2(numpy.maximum(magnitude, f32(1e-30))))
        mantissa = numpy.floor(magnitude / numpy.exp2(exponent) * 8) - 8
        return numpy.maximum(8 * (exponent - self.least + 1) + mantissa, 8)

    def scale(self, byte):
        return ((1 + byte % 8 / 8) * numpy.exp2(byte // 8 - 1 + self.least)).astype(f32)

    def __call__(self, weights):
        rows, columns = weights.shape
        groups = -(-columns // self.group)
        padded = numpy.zeros((rows, groups * self.group), f32)
        padded[:, :columns] = weights
        x = padded.reshape(-1, self.group)
        largest = abs(x).max(1)
        first = self.byte_below(largest / f32(self.outermost[1]))
        last = self.byte_below(largest / f32(self.outermost[0]))
        best = numpy.full(len(x), numpy.inf, f32)
        out = numpy.zeros_like(x)
        for step in range(int((last - first).max()) + 1):
            for sign in self.signs:
                scale = self.scale(first + step)[:, None] * f32(sign)
                rounded = numpy.clip(numpy.rint(x * (1 / scale)), self.lowest, self.highest) * scale
                error = ((x - rounded) ** 2).sum(1)
                better = (error < best) & (first + step <= last)
                best[better] = error[better]
                out[better] = rounded[better]
        return numpy.ascontiguousarray(out.reshape(padded.shape)[:, :columns])


class Ggml:
    """A type of llama.cpp, rounded by its own code in `library` and expanded by the package gguf."""

    def __init__(self, library, name, padded=False):
        self.library, self.name, self.padded = library, name, padded

    def sizes(self, columns):
        import gguf
        name = self.name
        if columns % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] and not self.padded:
            name = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[name]  # llama.cpp's tensor_type_fallback
        kind = gguf.GGMLQuantizationType[name]
        return kind, *gguf.GGML_QUANT_SIZES[kind]

    def bits(self, columns):
        kind, count, size = self.sizes(columns)
        return columns * size * 8 / count

    def __call__(self, weights):
        import gguf
        rows, columns = weights.shape
        kind, count, size = self.sizes(columns)
        whole = numpy.zeros((rows, -(-columns // count) * count), f32)
        whole[:, :columns] = weights
        packed = numpy.zeros((rows, whole.shape[1] // count * size), numpy.uint8)
        self.library.ggml_quantize_init(ctypes.c_int(kind))
        quantize = self.library.ggml_quantize_chunk
        quantize.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        written = quantize(ctypes.c_int(kind), pointer(whole.ctypes.data), pointer(packed.ctypes.data), number(0),
                           number(rows), number(whole.shape[1]), pointer(None))
        assert written == packed.nbytes, (self.name, written, packed.nbytes)
        return numpy.ascontiguousarray(gguf.quants.dequantize(packed, kind).reshape(whole.shape)[:, :columns])


def int8(group, scale_bits, scale, **more):
    return Affine(group, scale_bits if group else 0, scale, row_bits=0 if group else scale_bits, levels=255, **more)


def formats(library):
    """(which matrices, name, format) for each line of the table. zero-infer takes the first two."""
    packed4, packed8 = Affine(32, 10, short, 6, 4, factors=MANY), int8(128, 16, bfloat16_up)
    taken4 = Taken(16, -8, 7, (6, 9), -14, (1, -1))
    taken8 = Taken(32, -127, 127, (113, 136), -18, (1,))
    for name, scheme in {
        "int4 of zero-infer: 8-bit scale with a sign, groups of 16": taken4,
        "int8 of zero-infer: 8-bit scale, groups of 32": taken8,
        "int4: 10-bit scale, 6-bit zero in 1/4, groups of 32": packed4,
        "int8: bfloat16 scale, groups of 128": packed8,
        "int8, float32 scale a row": int8(0, 32, single),
        "int8, float32 scale a row, search": int8(0, 32, single, factors=(0.85, 0.9, 0.95, 1)),
        "int8, float32 scale a row, expanded to bfloat16": int8(0, 32, single, then=to_bfloat16),
        "int8, groups of 128, expanded to bfloat16": int8(128, 16, bfloat16_up, then=to_bfloat16),
        "int8, groups of 128, float16 scale": int8(128, 16, half),
        "int8, groups of 64": int8(64, 16, bfloat16_up),
        "int8, groups of 32": int8(32, 16, bfloat16_up),
        "int4, bare range": Affine(32, 10, short, 6, 4, anchors=(0.5,)),
        "int4, 4 scales x 2 zeros": Affine(32, 10, short, 6, 4, factors=FEW),
        "int4, 8 scales x 3 zeros": Affine(32, 10, short, 6, 4, factors=MANY, anchors=(0, 0.5, 1)),
        "int4, 8 scales x 3 zeros, corrected once": Affine(32, 10, short, 6, 4, factors=MANY, anchors=(0, 0.5, 1),
                                                           moves=1),
        "int4, error weighted with |w|": Affine(32, 10, short, 6, 4, factors=MANY, power=1),
        "int4, error weighted with w^2": Affine(32, 10, short, 6, 4, factors=MANY, power=2),
        "int4, groups of 64": Affine(64, 10, short, 6, 4, factors=MANY),
        "int4, groups of 128": Affine(128, 10, short, 6, 4, factors=MANY),
        "float16 scale, 8-bit zero in 1/8, 32": Affine(32, 16, half, 8, 8, factors=MANY),
        "float16 scale, 8-bit zero in 1/8, 64": Affine(64, 16, half, 8, 8, factors=MANY),
        "float16 scale, 8-bit zero in 1/8, 128": Affine(128, 16, half, 8, 8, factors=MANY),
        "float16 scale, integer zero, 32": Affine(32, 16, half, 4, 1, factors=MANY),
        "float16 scale, integer zero, 64": Affine(64, 16, half, 4, 1, factors=MANY),
        "float16 scale and minimum, 32": Affine(32, 16, half, 16, 0, factors=MANY),
        "float16 scale and minimum, 64": Affine(64, 16, half, 16, 0, factors=MANY),
        "8-bit scale of the row's, 8-bit zero in 1/8, 32": Affine(32, 8, of_row(8), 8, 8, 32, factors=MANY),
        "8-bit scale of the row's, 6-bit zero in 1/4, 32": Affine(32, 8, of_row(8), 6, 4, 32, factors=MANY),
        "8-bit scale of the row's, integer zero, 32": Affine(32, 8, of_row(8), 4, 1, 32, factors=MANY),
        "6-bit scale of the row's, 6-bit zero in 1/4, 32": Affine(32, 6, of_row(6), 6, 4, 32, factors=MANY),
        "symmetric, float16 scale, 32, bare absmax": Affine(32, 16, half),
        "symmetric, float16 scale, 32": Affine(32, 16, half, factors=MANY),
        "symmetric, float16 scale, 32, weighted |w|": Affine(32, 16, half, factors=MANY, power=1),
        "symmetric, float16 scale, 64": Affine(64, 16, half, factors=MANY),
        "symmetric, float16 scale, 128": Affine(128, 16, half, factors=MANY),
    }.items():
        yield "blocks", name, scheme
    if library:
        for name in ("Q8_0", "Q4_0", "Q4_1", "Q4_K"):
            yield "blocks", "llama.cpp " + name, Ggml(library, name)
        yield "blocks", "llama.cpp Q4_K padded", Ggml(library, "Q4_K", padded=True)
    for which in ("head", "embed"):
        yield which, f"{which} alone: int8 of zero-infer", taken8
        yield which, f"{which} alone: int8, float32 scale a row", int8(0, 32, single)
        yield which, f"{which} alone: int4 of zero-infer", taken4
