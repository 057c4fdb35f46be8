//! `LINEAR` with packed dot products: four products of bytes and their sum at once, which most GPUs have an instruction for.
//!
//! CubeCL has no way to ask for `dot4I8Packed` on WGSL, so these kernels are WGSL, written out for a format, a tile and a kind
//! of activations. Where an adapter lacks the instruction its driver or the compiler does without: the sums are exact anyway.
//!
//! An activation of 16 bits is split into bytes: a = 256·h + l, h signed, l unsigned. A row of activations is a run of pairs of
//! words, four h and the four l of the same elements; where activations have eight bits, single words. Weights of signed bytes
//! take l as the signed byte l − 128, and 128 times the sum of the weights is added at the end.

use std::fmt::Write;

use cubecl::ir::metadata::Info;
use cubecl::ir::{ElemType, Scope, UIntKind};
use cubecl::prelude::*;
use cubecl::{CubeKernel, PrecompiledSource};
use sworn_isa::RowFormat;

/// Rows of a matrix and positions that a cube of [`Tile::Many`] computes.
pub(crate) const BLOCK: u32 = 64;

/// Which part of the product a cube computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tile {
    /// `lanes` quadruples of rows for so many positions; `splits` units share the columns of a quadruple.
    Few {
        /// Positions, at most as many as `splits` if that is not 1.
        positions: u32,
        /// Quadruples of rows.
        lanes: u32,
        /// Units for each.
        splits: u32,
    },
    /// [`BLOCK`] rows for as many positions, from shared memory.
    Many,
}

/// One kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dot {
    pub(crate) format: RowFormat,
    /// Bytes of an activation.
    pub(crate) planes: u32,
    /// Whether the product is added to something.
    pub(crate) add: bool,
    pub(crate) tile: Tile,
}

impl Dot {
    pub(crate) fn units(&self) -> CubeDim {
        match self.tile {
            Tile::Few { lanes, splits, .. } => CubeDim::new_2d(lanes, splits),
            Tile::Many => CubeDim::new_2d(16, 16),
        }
    }

    /// Cubes for so many quadruples of rows and positions.
    pub(crate) fn cubes(&self, quads: u32, batch: u32) -> CubeCount {
        let (x, y) = match self.tile {
            Tile::Few { positions, lanes, .. } => (quads.div_ceil(lanes), batch.div_ceil(positions)),
            Tile::Many => (quads.div_ceil(BLOCK / 4), batch.div_ceil(BLOCK)),
        };
        CubeCount::Static(x, y, 1)
    }

    fn wgsl(&self) -> String {
        let mut text = String::from(HEADER);
        match self.tile {
            Tile::Few { positions, lanes, splits } => self.few(&mut text, positions, lanes, splits),
            Tile::Many => self.many(&mut text),
        }
        text
    }

    fn grouped(&self) -> bool {
        self.format != RowFormat::I8
    }

    /// Whether the low bytes are taken as l − 128.
    fn shifted(&self) -> bool {
        self.planes == 2 && self.format != RowFormat::Q4
    }

    /// Adds the products of the words `w` with those of one position, `h` and `l`, to sums with this suffix.
    fn products(&self, w: &str, h: &str, l: &str, p: u32) -> String {
        match (self.planes, self.format) {
            (1, _) => format!("hi{p} += dots({w}, {h});"),
            (_, RowFormat::Q4) => format!("hi{p} += dots({w}, {h}); lo{p} += unsigned_dots({w}, {l});"),
            _ => format!("hi{p} += dots({w}, {h}); lo{p} += dots({w}, {l});"),
        }
    }

    /// The sum of a position's products.
    fn product(&self, p: u32) -> String {
        match (self.planes, self.shifted()) {
            (1, _) => format!("hi{p}"),
            (_, true) => format!("(hi{p} << S8) + lo{p} + (sum << S7)"),
            _ => format!("(hi{p} << S8) + lo{p}"),
        }
    }

    /// Four activations' sum.
    fn total(&self, h: &str, l: &str) -> String {
        match self.planes {
            1 => format!("dot4I8Packed({h}, ONES)"),
            _ => format!("256 * dot4I8Packed({h}, ONES) + i32(dot4U8Packed({l}, ONES))"),
        }
    }

    /// Word `k` of a row of activations that begins at `at`: the names' values, and what declares them.
    fn load(&self, suffix: &str, at: &str, k: &str) -> String {
        match (self.planes, self.shifted()) {
            (1, _) => format!("let h{suffix} = a[{at} + {k}];"),
            (_, true) => {
                format!("let h{suffix} = a[{at} + 2u * ({k})]; let l{suffix} = a[{at} + 2u * ({k}) + 1u] ^ SIGNS;")
            }
            _ => format!("let h{suffix} = a[{at} + 2u * ({k})]; let l{suffix} = a[{at} + 2u * ({k}) + 1u];"),
        }
    }

    /// Declares the sums of a group, or of a whole row.
    fn sums(&self, positions: u32) -> String {
        let mut text = String::new();
        for p in 0..positions {
            let _ = write!(text, "var hi{p} = vec4<i32>(); ");
            if self.planes == 2 {
                let _ = write!(text, "var lo{p} = vec4<i32>(); ");
            }
        }
        if self.shifted() {
            text.push_str("var sum = vec4<i32>();");
        }
        text
    }

    /// Adds a group's products, times its scale, to the accumulators; `total` names a position's sum of activations.
    fn scaled(&self, positions: u32, total: impl Fn(u32) -> String) -> String {
        let mut text = String::new();
        for p in 0..positions {
            // |s| < 2^12 and the lower half below 2^16: no product overflows.
            let d = self.product(p);
            let _ = writeln!(
                text,
                "{{ let d = {d}; let lower = s * (d & LOW); \
                 acc{p} += s * (d >> S16) + (lower >> S16); low{p} += lower & LOW; }}"
            );
            if self.format == RowFormat::Q4 {
                // |m| < 2^15 (importers keep −2^15 out), twice the sum of a group below 2^21.
                let _ = writeln!(
                    text,
                    "{{ let twice = 2 * ({}); let under = m * (twice & 65535); \
                     acc{p} += m * (twice >> 16u) + (under >> S16); low{p} += under & LOW; }}",
                    total(p)
                );
            }
        }
        text
    }

    /// Narrows and scales accumulators of these names, of position `r` of the batch, and writes them.
    fn write(&self, acc: &str, low: &str, r: &str) -> String {
        let sum = match self.format {
            RowFormat::I8 => format!("{acc}[lane]"),
            RowFormat::Q4 => format!("narrow({acc}[lane], u32({low}[lane]), 12u)"),
            RowFormat::Q8 => format!("narrow({acc}[lane], u32({low}[lane]), 16u)"),
        };
        let add = if self.add { "y = add_clamp(addend[d + row], y);" } else { "" };
        // Without an ADD nothing else would read this buffer, and its place in the layout would be gone.
        let touch = if self.add { "" } else { "if (params.batch == 0u) { out[0] = addend[0]; }" };
        format!(
            "{{ let r = {r}; if (r < params.batch) {{ {touch}
            let s = start(params.s, r); let am = u32(scale[s]); let ae = scale[s + 1u];
            let o = start(params.o, r) + params.first_row; let d = start(params.d, r) + params.first_row;
            for (var lane = 0u; lane < 4u; lane++) {{ let row = 4u * quad + lane; if (row < params.rows) {{
                let w = scales[params.scales + row];
                var y = smulrs({sum}, am * (w & 65535u), (bitcast<i32>(w) >> 16u) - ae); {add}
                out[o + row] = y; }} }} }} }}\n"
        )
    }

    fn few(&self, text: &mut String, positions: u32, lanes: u32, splits: u32) {
        let each = |f: &dyn Fn(u32) -> String| (0..positions).map(f).collect::<Vec<_>>().join("\n");
        let starts = each(&|p| format!("let at{p} = start(params.a, min(r0 + {p}u, params.batch - 1u));"));
        let accumulators = each(&|p| match self.grouped() {
            true => format!("var acc{p} = vec4<i32>(); var low{p} = vec4<i32>();"),
            false => format!("var acc{p} = vec4<i32>();"),
        });
        let sums = self.sums(positions);
        let weights = if self.shifted() { "sum += dots(w, ONES);" } else { "" };
        let products = |w: &str, p: u32, k: &str| {
            format!(
                "{} {}",
                self.load(&p.to_string(), &format!("at{p}"), k),
                self.products(w, &format!("h{p}"), &format!("l{p}"), p)
            )
        };
        let body = match self.format {
            RowFormat::I8 => format!(
                "{sums}
                for (var k = unit.y; k < params.words; k += {splits}u) {{
                    let w = words[k * params.quads + quad]; {weights}
                    {}
                }}
                {}",
                each(&|p| format!("{{ {} }}", products("w", p, "k"))),
                each(&|p| format!("acc{p} = {};", self.product(p))),
            ),
            RowFormat::Q8 => format!(
                "for (var k = unit.y; 8u * k < params.words; k += {splits}u) {{
                    {SCALES}
                    {sums}
                    for (var i = 8u * k; i < 8u * k + 8u; i++) {{
                        let w = words[i * params.quads + quad]; {weights}
                        {}
                    }}
                    {}
                }}",
                each(&|p| format!("{{ {} }}", products("w", p, "i"))),
                self.scaled(positions, |_| String::new()),
            ),
            RowFormat::Q4 => format!(
                "for (var k = unit.y; 4u * k < params.words; k += {splits}u) {{
                    {SCALES}
                    {sums}
                    {}
                    for (var i = 0u; i < 4u; i++) {{
                        let word = words[(4u * k + i) * params.quads + quad];
                        let w = word & NIBBLES; let v = (word >> S4) & NIBBLES;
                        {}
                    }}
                    {}
                }}",
                each(&|p| format!("var total{p} = 0;")),
                each(&|p| format!(
                    "{{ {} total{p} += {}; }} {{ {} total{p} += {}; }}",
                    products("w", p, "8u * k + i"),
                    self.total(&format!("h{p}"), &format!("l{p}")),
                    products("v", p, "8u * k + 4u + i"),
                    self.total(&format!("h{p}"), &format!("l{p}")),
                )),
                self.scaled(positions, |p| format!("total{p}")),
            ),
        };
        let touch = if self.grouped() { "" } else { TOUCH_GROUPS };
        let end = match splits {
            1 => {
                let writes = each(&|p| self.write(&format!("acc{p}"), &format!("low{p}"), &format!("r0 + {p}u")));
                format!("if (quad < params.quads) {{ {writes} }}")
            }
            // Unit (x, p) adds up the parts of position p and writes the sum.
            _ => {
                let part = format!("{lanes}u * unit.y + unit.x");
                let fold = |name: &str| {
                    let stores = each(&|p| format!("parts[{}u + {part}] = {name}{p};", p * lanes * splits));
                    format!(
                        "{stores} workgroupBarrier();
                        var {name} = vec4<i32>();
                        if (unit.y < {positions}u) {{
                            for (var s = 0u; s < {splits}u; s++) {{
                                {name} += parts[({splits}u * unit.y + s) * {lanes}u + unit.x];
                            }}
                        }}"
                    )
                };
                let folds = match self.grouped() {
                    true => format!("{} workgroupBarrier(); {}", fold("acc"), fold("low")),
                    false => fold("acc"),
                };
                let write = self.write("acc", "low", "r0 + unit.y");
                format!("{folds} if (unit.y < {positions}u && quad < params.quads) {{ {write} }}")
            }
        };
        let parts = match splits {
            1 => String::new(),
            _ => format!("var<workgroup> parts: array<vec4<i32>, {}>;", positions * lanes * splits),
        };
        let _ = write!(
            text,
            "{parts}
            @compute @workgroup_size({lanes}, {splits}, 1)
            fn main(@builtin(workgroup_id) cube: vec3<u32>, @builtin(local_invocation_id) unit: vec3<u32>) {{
                let quad = cube.x * {lanes}u + unit.x;
                let r0 = cube.y * {positions}u;
                {starts}
                {accumulators}
                {touch}
                if (quad < params.quads) {{ {body} }}
                {end}
            }}",
        );
    }

    fn many(&self, text: &mut String) {
        let each = |f: &dyn Fn(u32) -> String| (0..4).map(f).collect::<Vec<_>>().join("\n");
        let accumulators = each(&|p| match self.grouped() {
            true => format!("var acc{p} = vec4<i32>(); var low{p} = vec4<i32>();"),
            false => format!("var acc{p} = vec4<i32>();"),
        });
        let (sums, weights) = (self.sums(4), if self.shifted() { "sum += dots(w, ONES);" } else { "" });
        let (outer, inner) = if self.grouped() { (String::new(), sums) } else { (sums, String::new()) };
        // The words of a row's activations, of which four bits each fill half as many words of weights.
        let (per_word, load_weights) = match self.format {
            RowFormat::Q4 => (
                2,
                "let word = words[(4u * c + (k & 3u)) * params.quads + q0 + lane];
                let nibbles = select(word, word >> S4, vec4<bool>(k > 3u)) & NIBBLES;",
            ),
            _ => (1, "let nibbles = words[(8u * c + k) * params.quads + q0 + lane];"),
        };
        let store = |half: u32| {
            let low =
                if self.planes == 2 { format!("xl[w * 65u + x + {}u] = l{half};", 32 * half) } else { String::new() };
            format!(
                "{{ {} xh[w * 65u + x + {}u] = h{half}; {low} }}",
                self.load(&half.to_string(), &format!("from{half}"), "8u * c + w"),
                32 * half
            )
        };
        let low_tile = if self.planes == 2 { "var<workgroup> xl: array<u32, 520>;" } else { "" };
        let (totals_tile, totals) = match self.format {
            RowFormat::Q4 => (
                "var<workgroup> totals: array<i32, 64>;",
                format!(
                    "if (u < 64u) {{ var total = 0;
                    for (var k = 0u; k < 8u; k++) {{ total += {}; }}
                    totals[u] = total; }}
                    workgroupBarrier();",
                    self.total("xh[k * 65u + u]", "xl[k * 65u + u]")
                ),
            ),
            _ => ("", String::new()),
        };
        let products = each(&|p| {
            let at = |tile: &str| format!("{tile}[k * 65u + 4u * unit.y + {p}u]");
            self.products("w", &at("xh"), &at("xl"), p)
        });
        let after = match self.grouped() {
            true => format!(
                "if (quad < params.quads) {{ let k = c; {SCALES} {} }}",
                self.scaled(4, |p| format!("totals[4u * unit.y + {p}u]"))
            ),
            false => String::new(),
        };
        let end = match self.grouped() {
            true => String::new(),
            false => format!("{TOUCH_GROUPS} {}", each(&|p| format!("acc{p} = {};", self.product(p)))),
        };
        let writes = each(&|p| self.write(&format!("acc{p}"), &format!("low{p}"), &format!("r0 + 4u * unit.y + {p}u")));
        let _ = write!(
            text,
            "var<workgroup> tile: array<vec4<u32>, 128>;
            var<workgroup> xh: array<u32, 520>;
            {low_tile} {totals_tile}
            @compute @workgroup_size(16, 16, 1)
            fn main(@builtin(workgroup_id) cube: vec3<u32>, @builtin(local_invocation_id) unit: vec3<u32>) {{
                let u = 16u * unit.y + unit.x;
                let q0 = 16u * cube.x;
                let quad = q0 + unit.x;
                let r0 = {BLOCK}u * cube.y;
                // A unit fetches word w of positions x and x + 32, and one vector of weights if it is in the first half.
                let w = u & 7u;
                let x = u >> 3u;
                let from0 = start(params.a, min(r0 + x, params.batch - 1u));
                let from1 = start(params.a, min(r0 + x + 32u, params.batch - 1u));
                let elements = {per_word}u * params.words;
                {accumulators}
                {outer}
                for (var c = 0u; 8u * c < elements; c++) {{
                    if (u < 128u) {{
                        let k = u >> 4u; let lane = u & 15u;
                        var own = vec4<u32>();
                        if (8u * c + k < elements && q0 + lane < params.quads) {{ {load_weights} own = nibbles; }}
                        tile[u] = own;
                    }}
                    if (8u * c + w < elements) {{
                        {}
                        {}
                    }}
                    workgroupBarrier();
                    {totals}
                    {{
                        {inner}
                        for (var k = 0u; k < 8u; k++) {{
                            let w = tile[16u * k + unit.x]; {weights}
                            {products}
                        }}
                        {after}
                    }}
                    workgroupBarrier();
                }}
                {end}
                if (quad < params.quads) {{ {writes} }}
            }}",
            store(0),
            store(1),
        );
    }
}

impl KernelMetadata for Dot {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(*self).cube_dim(self.units().into()).mode(ExecutionMode::Unchecked)
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for Dot {
    fn define(&self) -> KernelDefinition {
        let settings = KernelSettings::new(self.units().into(), ExecutionMode::Unchecked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource { source: self.wgsl(), entrypoint_name: "main".into(), lang: "wgsl" })
    }
}

/// Scale and minimum of group `k`.
const SCALES: &str = "let group = bitcast<vec4<i32>>(groups[k * params.quads + quad]);
    let s = (group << S16) >> S16; let m = group >> S16;";

/// Rows without groups have no other use for this binding, and its place in the layout would be gone.
const TOUCH_GROUPS: &str = "if (params.batch == 0u) { acc0 = bitcast<vec4<i32>>(groups[0]); }";

/// The bindings, and the primitives of [`super::arith`] that a product needs. All bindings may be written as far as the layout
/// knows: buffers share memory pages, of which one launch must not use some parts as read-only and others not.
const HEADER: &str = "
struct Rows { stride: u32, offset: u32, numbering: u32, slab: u32, slab_len: u32 }
struct Params { a: Rows, s: Rows, d: Rows, o: Rows, batch: u32, words: u32, quads: u32, first_row: u32, rows: u32, scales: u32 }
@group(0) @binding(0) var<storage, read_write> ctx: array<u32>;
@group(0) @binding(1) var<storage, read_write> a: array<u32>;
@group(0) @binding(2) var<storage, read_write> scale: array<i32>;
@group(0) @binding(3) var<storage, read_write> words: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> groups: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> scales: array<u32>;
@group(0) @binding(6) var<storage, read_write> addend: array<i32>;
@group(0) @binding(7) var<storage, read_write> out: array<i32>;
@group(0) @binding(8) var<storage, read_write> params: Params;

const ONES = 0x01010101u;
const SIGNS = 0x80808080u;
const NIBBLES = vec4<u32>(0x0f0f0f0fu);
const LOW = vec4<i32>(65535);
const S4 = vec4<u32>(4u);
const S7 = vec4<u32>(7u);
const S8 = vec4<u32>(8u);
const S16 = vec4<u32>(16u);

fn start(rows: Rows, r: u32) -> u32 {
    var k = r;
    if (rows.numbering == 1u) { k = ctx[4u * r + 2u] + ctx[4u * r]; }
    else if (rows.numbering == 2u) { k = ctx[4u * r + 3u]; }
    return rows.offset + k * rows.stride + ctx[4u * r] / rows.slab * rows.slab_len;
}
fn dots(w: vec4<u32>, x: u32) -> vec4<i32> {
    return vec4<i32>(dot4I8Packed(w.x, x), dot4I8Packed(w.y, x), dot4I8Packed(w.z, x), dot4I8Packed(w.w, x));
}
fn unsigned_dots(w: vec4<u32>, x: u32) -> vec4<i32> {
    return bitcast<vec4<i32>>(vec4<u32>(
        dot4U8Packed(w.x, x), dot4U8Packed(w.y, x), dot4U8Packed(w.z, x), dot4U8Packed(w.w, x)));
}
fn magnitude(x: i32) -> u32 {
    let u = bitcast<u32>(x);
    return select(u, (u ^ 0xffffffffu) + 1u, x < 0);
}
fn signed(negative: bool, m: u32) -> i32 { return bitcast<i32>(select(m, (m ^ 0xffffffffu) + 1u, negative)); }
fn product_high(x: u32, y: u32) -> u32 {
    let xl = x & 65535u; let xh = x >> 16u; let yl = y & 65535u; let yh = y >> 16u;
    let lh = xl * yh; let hl = xh * yl;
    let middle = ((xl * yl) >> 16u) + (lh & 65535u) + (hl & 65535u);
    return xh * yh + (lh >> 16u) + (hl >> 16u) + (middle >> 16u);
}
fn mulrs(x: u32, y: u32, shift: i32) -> u32 {
    if (shift < 1) { return select(0u, 1073741823u, x != 0u); }
    let s = min(u32(shift), 63u);
    let low = x * y;
    let high = product_high(x, y);
    var r = 0u;
    if (s > 32u) { r = (high + (1u << (s - 33u))) >> (s - 32u); }
    else {
        let sum = low + (1u << (s - 1u));
        let carried = high + select(0u, 1u, sum < low);
        if (s == 32u) { r = carried; }
        else if ((carried >> s) != 0u) { r = 1073741823u; }
        else { r = (sum >> s) | (carried << (32u - s)); }
    }
    return min(r, 1073741823u);
}
fn smulrs(x: i32, y: u32, shift: i32) -> i32 { return signed(x < 0, mulrs(magnitude(x), y, shift)); }
fn narrow(high: i32, low: u32, right: u32) -> i32 {
    var upper = bitcast<u32>(high) + (low >> 16u);
    var lower = low & 65535u;
    let negative = upper >= 0x80000000u;
    if (negative) {
        upper = upper ^ 0xffffffffu;
        lower = 65536u - lower;
        upper += lower >> 16u;
        lower = lower & 65535u;
    }
    return signed(negative, (upper << (16u - right)) + ((lower + (1u << (right - 1u))) >> right));
}
fn add_clamp(x: i32, y: i32) -> i32 {
    let sum = x + y;
    let over = ((x ^ sum) & (y ^ sum)) < 0;
    let negative = select(sum < 0, x < 0, over);
    return signed(negative, min(select(magnitude(sum), 1073741823u, over), 1073741823u));
}
";
