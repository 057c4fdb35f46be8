//! A model directory in memory.
//!
//! Loading maps the weights and checks everything that an execution relies on; only the weights' own hashes are left to
//! [`Model::verify`], since they cost a pass over all bytes through keccak.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use memmap2::Mmap;
use rayon::prelude::*;
use sworn_commit::{Hash, Manifest, Tree, keccak, section_tree, tensor};
use sworn_isa::{
    Descriptor, Dtype, GROUP_SCALE_MAX, Opcode, Operand, OperandKind, Program, RowFormat, SectionKind, fixed::CL,
};

use crate::{
    chat::{ChatTemplate, Message},
    directory::{self, Description, Index, MatrixEntry},
    error::{ModelError, Result},
    pack::{row_tree, tables_tree, weights_tree},
    progress::{OnProgress, Progress, Stage},
    quantise,
    tokenizer::Tokenizer,
};

/// Largest of the small files that is read into memory: a bound against a damaged or hostile directory.
const MAX_SMALL_FILE: u64 = 256 << 20;

/// A matrix: rows of scale pairs and elements.
#[derive(Clone, Copy, Debug)]
pub struct WeightMatrix<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
    /// Scale pairs per row.
    pub scales: usize,
    /// How a row stores its weights.
    pub format: RowFormat,
    /// All rows, one after another.
    pub bytes: &'a [u8],
}

impl<'a> WeightMatrix<'a> {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        4 * self.scales + self.format.bytes(self.cols)
    }

    /// Row `r` as committed: scale pairs, then elements.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, r: usize) -> &'a [u8] {
        &self.bytes[r * self.row_bytes()..(r + 1) * self.row_bytes()]
    }

    /// Scale pair (m, sh) number `column` of row `r`.
    ///
    /// # Panics
    /// If there is no such row or pair.
    pub fn scale(&self, r: usize, column: usize) -> (u16, i16) {
        assert!(column < self.scales, "scale column outside of the row");
        let b = &self.row(r)[4 * column..4 * column + 4];
        (u16::from_be_bytes([b[0], b[1]]), i16::from_be_bytes([b[2], b[3]]))
    }

    /// The integer weights of row `r`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn weights(&self, r: usize) -> Vec<i32> {
        let row = &self.row(r)[4 * self.scales..];
        (0..self.cols).map(|k| self.format.weight(row, self.cols, k)).collect()
    }
}

/// A table: its elements as committed and as numbers.
#[derive(Clone, Debug)]
pub struct Table {
    /// Element type.
    pub dtype: Dtype,
    /// Elements big-endian.
    pub bytes: Vec<u8>,
    /// Elements.
    pub values: Vec<i32>,
}

/// A loaded model.
pub struct Model {
    path: PathBuf,
    manifest: Manifest,
    id: Hash,
    program: Program,
    description: Description,
    index: Index,
    /// Where each matrix begins in the map.
    starts: Vec<usize>,
    weights: Mmap,
    tables: Vec<Table>,
    weights_tree: Tree,
    tables_tree: Tree,
    tokenizer_json: Vec<u8>,
    tokenizer: OnceLock<std::result::Result<Tokenizer, String>>,
    chat: ChatTemplate,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} {} at {})", self.description.name, hex::encode(self.id), self.path.display())
    }
}

impl Model {
    /// Opens a model directory. What is checked: the program and its roots, every table, the tokenizer's and template's
    /// hashes, that every reference resolves to a matrix or table of the right shape, that no partial sum of any row can
    /// leave 32 bits, and that the recorded matrix roots are those of the manifest.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.join(directory::MANIFEST).is_file() {
            return Err(ModelError::directory(
                dir,
                format!("it holds no {}, so it is not a (whole) model", directory::MANIFEST),
            ));
        }
        let wrong = |file: &str, what: String| ModelError::directory(dir, format!("{file}: {what}"));
        let manifest = Manifest::decode(&read(dir, directory::MANIFEST)?)
            .map_err(|e| wrong(directory::MANIFEST, e.to_string()))?;
        let program = Program::decode(&read(dir, directory::PROGRAM)?, manifest.op_counts)
            .map_err(|e| wrong(directory::PROGRAM, e.to_string()))?;
        program.validate(manifest.max_positions).map_err(|e| wrong(directory::PROGRAM, e.to_string()))?;
        for (kind, root) in SECTIONS.into_iter().zip(manifest.section_roots) {
            if section_tree(program.section(kind)).root() != root {
                return Err(wrong(directory::PROGRAM, format!("the {kind:?} section is not the one in the manifest")));
            }
        }
        let parse_error = |file: &'static str| move |e: serde_json::Error| wrong(file, e.to_string());
        let index: Index =
            serde_json::from_slice(&read(dir, directory::INDEX)?).map_err(parse_error(directory::INDEX))?;
        let description: Description =
            serde_json::from_slice(&read(dir, directory::DESCRIPTION)?).map_err(parse_error(directory::DESCRIPTION))?;

        let tokenizer_json = read(dir, directory::TOKENIZER)?;
        if keccak(&[&tokenizer_json]) != manifest.tokenizer_hash {
            return Err(wrong(directory::TOKENIZER, "it is not the one in the manifest".into()));
        }
        let template = read(dir, directory::CHAT_TEMPLATE)?;
        if keccak(&[&template]) != manifest.chat_template_hash {
            return Err(wrong(directory::CHAT_TEMPLATE, "it is not the one in the manifest".into()));
        }
        let template =
            String::from_utf8(template).map_err(|_| wrong(directory::CHAT_TEMPLATE, "it is not UTF-8".into()))?;

        let weights_tree = weights_tree(&index);
        if index.weights.len() != manifest.weights as usize || weights_tree.root() != manifest.weights_root {
            return Err(wrong(directory::INDEX, "its matrices are not those of the manifest".into()));
        }
        let tables = read_tables(dir, &index)?;
        let tables_tree = tables_tree(&index);
        if index.tables.len() != manifest.tables as usize || tables_tree.root() != manifest.tables_root {
            return Err(wrong(directory::INDEX, "its tables are not those of the manifest".into()));
        }

        let (weights, starts) = map_weights(dir, &index)?;
        let mut model = Model {
            path: dir.to_owned(),
            id: manifest.id(),
            manifest,
            program,
            description,
            index,
            starts,
            weights,
            tables,
            weights_tree,
            tables_tree,
            tokenizer_json,
            tokenizer: OnceLock::new(),
            chat: ChatTemplate::new("", "", "")?,
        };
        model.check_references().map_err(|what| ModelError::directory(dir, what))?;
        let special = model.description.special_tokens.clone();
        let spelling = |id: Option<u32>| -> Result<String> {
            // The tokenizer is large and not every user of a model needs it.
            if template.is_empty()
                || id.is_none()
                || !(template.contains("bos_token") || template.contains("eos_token"))
            {
                return Ok(String::new());
            }
            let bytes = model.tokenizer()?.token_bytes(id.unwrap_or(0));
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        let (bos, eos) = (spelling(special.bos)?, spelling(special.eos)?);
        model.chat = ChatTemplate::new(&template, &bos, &eos)?;
        Ok(model)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model id: the manifest's hash.
    pub fn id(&self) -> Hash {
        self.id
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What a person wants to know.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Blocks.
    pub fn layers(&self) -> u16 {
        self.manifest.layers
    }

    /// Which section a layer runs (0 embedding, 1…L blocks, L + 1 head); `None` beyond.
    pub fn section_kind(&self, layer: u16) -> Option<SectionKind> {
        SectionKind::of_layer(layer, self.layers())
    }

    /// Whether generation ends with this token.
    pub fn is_stop(&self, token: u32) -> bool {
        self.manifest.stop_tokens.contains(&token)
    }

    /// Shapes and roots of matrices and tables.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Number of the matrix or table that a WEIGHT or TABLE operand means at `layer`.
    pub fn resolve(operand: &Operand, layer: u16) -> usize {
        // Wider than the operand's own arithmetic: a hostile program may name any index.
        let step = u64::from(operand.stride) * u64::from(layer.saturating_sub(1));
        usize::try_from(u64::from(operand.index) + step).unwrap_or(usize::MAX)
    }

    /// Matrix number `i`.
    ///
    /// # Panics
    /// If there is none; the operands of [`Self::program`] all have one.
    pub fn weight(&self, i: usize) -> WeightMatrix<'_> {
        let e = &self.index.weights[i];
        let start = self.starts[i];
        WeightMatrix {
            rows: e.rows as usize,
            cols: e.cols as usize,
            format: e.row_format().unwrap_or_default(),
            scales: e.scales as usize,
            bytes: &self.weights[start..start + e.bytes() as usize],
        }
    }

    /// Says that matrix `i` will hardly be read any more: its pages no longer count as this process's memory. Reading it is as
    /// valid as before, and brings them back. A hint, which does nothing where the system has none.
    pub fn release_weight(&self, i: usize) {
        #[cfg(unix)]
        if let (Some(start), Some(e)) = (self.starts.get(i), self.index.weights.get(i)) {
            // SAFETY: the map is of a file and read-only, so a page that was dropped is read from the file again.
            let advised = unsafe {
                self.weights.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, *start, e.bytes() as usize)
            };
            if let Err(e) = advised {
                tracing::debug!("matrix {i} stays in memory: {e}");
            }
        }
    }

    /// The matrix that a WEIGHT operand means at `layer`.
    ///
    /// # Panics
    /// As [`Self::weight`].
    pub fn operand_weight(&self, operand: &Operand, layer: u16) -> WeightMatrix<'_> {
        self.weight(Self::resolve(operand, layer))
    }

    /// Table number `i`.
    ///
    /// # Panics
    /// If there is none; the operands of [`Self::program`] all have one.
    pub fn table(&self, i: usize) -> &Table {
        &self.tables[i]
    }

    /// The table that a TABLE operand means at `layer`.
    ///
    /// # Panics
    /// As [`Self::table`].
    pub fn operand_table(&self, operand: &Operand, layer: u16) -> &Table {
        self.table(Self::resolve(operand, layer))
    }

    /// The tree over the rows of matrix `i`, hashed anew at each call.
    ///
    /// # Panics
    /// As [`Self::weight`].
    pub fn row_tree(&self, i: usize) -> Tree {
        let m = self.weight(i);
        row_tree(m.bytes, m.row_bytes())
    }

    /// The tree over the pages of table `i`, hashed anew at each call.
    ///
    /// # Panics
    /// As [`Self::table`].
    pub fn table_tree(&self, i: usize) -> Tree {
        tensor::tensor_tree(&self.table(i).bytes)
    }

    /// The tree over the matrices' roots.
    pub fn weights_tree(&self) -> &Tree {
        &self.weights_tree
    }

    /// The tree over the tables' roots.
    pub fn tables_tree(&self) -> &Tree {
        &self.tables_tree
    }

    /// The tokenizer, read at the first call.
    ///
    /// # Errors
    /// Its file cannot be read as a tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let loaded =
            self.tokenizer.get_or_init(|| Tokenizer::from_json(&self.tokenizer_json).map_err(|e| e.to_string()));
        loaded.as_ref().map_err(|e| ModelError::Tokenizer(e.clone()))
    }

    /// The chat template.
    pub fn chat(&self) -> &ChatTemplate {
        &self.chat
    }

    /// The tokens of a conversation whose next turn is the assistant's.
    ///
    /// # Errors
    /// The template rejects it, or a token is outside of the vocabulary.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.in_vocabulary(self.tokenizer()?.encode(&self.chat.render(messages, true)?)?)
    }

    /// The tokens of a plain text, begun as the model expects it.
    ///
    /// # Errors
    /// A token is outside of the vocabulary.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer()?.encode(text)?;
        if let Some(bos) =
            self.description.special_tokens.bos.filter(|b| self.description.add_bos && ids.first() != Some(b))
        {
            ids.insert(0, bos);
        }
        self.in_vocabulary(ids)
    }

    fn in_vocabulary(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        match ids.iter().find(|id| **id >= self.manifest.vocab) {
            None => Ok(ids),
            Some(id) => Err(ModelError::Tokenizer(format!(
                "token {id} is outside of the model's vocabulary of {}",
                self.manifest.vocab
            ))),
        }
    }

    /// Recomputes the model id from every byte of the directory.
    ///
    /// # Errors
    /// Names the first matrix that is not the one that was committed to.
    pub fn verify(&self, progress: OnProgress<'_>) -> Result<Hash> {
        let total = self.index.weights.len() as u64;
        for (i, entry) in self.index.weights.iter().enumerate() {
            progress(Progress { stage: Stage::Verify, done: i as u64, total });
            if self.row_tree(i).root() != entry.root {
                return Err(ModelError::directory(
                    &self.path,
                    format!("{}: matrix {i} ({}) is damaged", directory::WEIGHTS, entry.name),
                ));
            }
        }
        progress(Progress { stage: Stage::Verify, done: total, total });
        Ok(self.id)
    }

    /// Every WEIGHT and TABLE operand of every layer means something of the shape and range that its operator needs.
    fn check_references(&self) -> std::result::Result<(), String> {
        let layers = self.layers();
        let (exp, ln) = (quantise::exp_table(), quantise::ln_table());
        // Each matrix once, with the widest activation that multiplies it.
        let mut widest = vec![0u8; self.index.weights.len()];
        for layer in 0..=layers + 1 {
            let Some(kind) = self.section_kind(layer) else { continue };
            let section = self.program.section(kind);
            for (op, d) in section.ops.iter().enumerate() {
                for (k, o) in d.operands.iter().enumerate() {
                    let at = || format!("layer {layer}, operator {op} ({})", d.opcode);
                    match o.kind {
                        OperandKind::Weight => {
                            let i = Self::resolve(o, layer);
                            let entry = self
                                .index
                                .weights
                                .get(i)
                                .ok_or_else(|| format!("{}: matrix {i} does not exist", at()))?;
                            check_matrix(d, entry).map_err(|e| format!("{}: matrix {i} ({}) {e}", at(), entry.name))?;
                            if d.opcode == Opcode::Linear {
                                let bits = input_bits(&section.ops, d);
                                let bits = bits.ok_or_else(|| format!("{}: its input is not quantised", at()))?;
                                widest[i] = widest[i].max(bits);
                            }
                        }
                        OperandKind::Table => {
                            let i = Self::resolve(o, layer);
                            let table =
                                self.tables.get(i).ok_or_else(|| format!("{}: table {i} does not exist", at()))?;
                            let top = self.manifest.max_positions - 1;
                            if table.dtype != o.dtype || Some(table.values.len() as u64) != d.operand_elements(k, top) {
                                return Err(format!("{}: table {i} has another type or size", at()));
                            }
                            // The contents of those that name a function are part of the instruction set.
                            let (wanted, name) = match d.opcode {
                                Opcode::LogSum => (&ln, "logarithm"),
                                _ => (&exp, "exponential"),
                            };
                            let values = table.values.iter().map(|v| i64::from(*v));
                            if table.dtype == Dtype::U16 && !values.eq(wanted.iter().copied()) {
                                return Err(format!("table {i} is not the instruction set's {name}"));
                            }
                        }
                        _ => {}
                    }
                }
                if matches!(d.opcode, Opcode::Embed | Opcode::Select | Opcode::Sample | Opcode::Top | Opcode::LogProb)
                    && d.params[0] as u32 != self.manifest.vocab
                {
                    return Err(format!("layer {layer}, operator {op}: its vocabulary is not the manifest's"));
                }
            }
        }
        for (i, table) in self.tables.iter().enumerate() {
            match table.dtype {
                Dtype::I16 if table.values.contains(&-32768) => return Err(format!("table {i} holds −32768")),
                Dtype::I32 if table.values.iter().any(|v| v.unsigned_abs() > CL as u32) => {
                    return Err(format!("table {i} holds a value of 2^30 or more"));
                }
                _ => {}
            }
        }
        for (i, bits) in widest.into_iter().enumerate() {
            let m = self.weight(i);
            let rows = m.bytes.par_chunks_exact(m.row_bytes());
            let bad = rows.position_any(|row| match row_norm(m.format, &row[4 * m.scales..]) {
                None => true,
                Some(l1) => bits > 0 && !quantise::partial_sums_fit(m.format, l1, bits),
            });
            if let Some(row) = bad {
                return Err(format!(
                    "{}: matrix {i}, row {row} holds a weight outside its range or sums that do not fit",
                    directory::WEIGHTS
                ));
            }
        }
        Ok(())
    }
}

const SECTIONS: [SectionKind; 3] = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head];

/// ‖w‖₁ of a row without its scale pairs; `None` if it holds a value outside the format's range.
pub(crate) fn row_norm(format: RowFormat, row: &[u8]) -> Option<u64> {
    let groups = format.elements(row.len())? / sworn_isa::GROUP;
    let i16s =
        |from: usize| row[from..from + 2 * groups].as_chunks::<2>().0.iter().map(|b| i32::from(i16::from_be_bytes(*b)));
    match format {
        RowFormat::I8 => {
            let (l1, least) = row_sum(bytemuck::cast_slice(row));
            (least != i8::MIN).then_some(l1)
        }
        RowFormat::Q4 => {
            let mut l1 = 0;
            let quants = row[4 * groups..].as_chunks::<16>().0;
            for ((s, m), bytes) in i16s(0).zip(i16s(2 * groups)).zip(quants) {
                if s.abs() > GROUP_SCALE_MAX || m == i32::from(i16::MIN) {
                    return None;
                }
                let weight: [u32; 16] = std::array::from_fn(|q| (s * q as i32 + 2 * m).unsigned_abs());
                let pair = |b: &u8| weight[usize::from(b & 15)] + weight[usize::from(b >> 4)];
                l1 += u64::from(bytes.iter().map(pair).sum::<u32>());
            }
            Some(l1)
        }
        RowFormat::Q8 => {
            let mut l1 = 0;
            for (s, elements) in i16s(0).zip(row[2 * groups..].chunks_exact(sworn_isa::GROUP)) {
                let (sum, least) = row_sum(bytemuck::cast_slice(elements));
                if s.abs() > GROUP_SCALE_MAX || least == i8::MIN {
                    return None;
                }
                l1 += u64::from(s.unsigned_abs()) * sum;
            }
            Some(l1)
        }
    }
}

/// ‖row‖₁ and the least element.
fn row_sum(elements: &[i8]) -> (u64, i8) {
    let mut l1 = 0u64;
    let mut least = i8::MAX;
    // Short runs keep the sums in 16 bits, which vectorises.
    for run in elements.chunks(256) {
        let mut sum = 0u16;
        for e in run {
            sum += u16::from(e.unsigned_abs());
            least = least.min(*e);
        }
        l1 += u64::from(sum);
    }
    (l1, least)
}

/// Width of the quantised activation that a `LINEAR` multiplies.
fn input_bits(ops: &[Descriptor], linear: &Descriptor) -> Option<u8> {
    let source = ops.get(linear.operands[0].index as usize)?;
    (linear.operands[0].kind == OperandKind::Op && source.opcode == Opcode::Quant).then_some(source.bits)
}

fn check_matrix(d: &Descriptor, e: &MatrixEntry) -> std::result::Result<(), String> {
    let (rows, cols) = match d.opcode {
        Opcode::Embed => (d.params[0] as u64, d.count(0)),
        _ => (d.count(0), d.params[0] as u64),
    };
    let format = RowFormat::from_code(d.params[3]);
    if e.row_format().is_none() || e.row_format() != format {
        return Err(format!("has rows of format {}, needed are rows of format {}", e.format, d.params[3]));
    }
    if (u64::from(e.rows), u64::from(e.cols), u64::from(e.scales)) != (rows, cols, d.params[2] as u64) {
        return Err(format!(
            "has {} rows of {} scale pairs and {} elements; needed are {rows} rows of {} and {cols}",
            e.rows, e.scales, e.cols, d.params[2]
        ));
    }
    Ok(())
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    let meta = fs::metadata(&path).map_err(ModelError::io("reading", &path))?;
    if meta.len() > MAX_SMALL_FILE {
        return Err(ModelError::directory(
            dir,
            format!("{name} has {} bytes, far more than any model needs", meta.len()),
        ));
    }
    fs::read(&path).map_err(ModelError::io("reading", &path))
}

fn read_tables(dir: &Path, index: &Index) -> Result<Vec<Table>> {
    let wrong = |what: String| ModelError::directory(dir, format!("{}: {what}", directory::TABLES));
    let bytes = read(dir, directory::TABLES)?;
    let mut rest = &bytes[..];
    let mut tables = Vec::with_capacity(index.tables.len());
    for (i, entry) in index.tables.iter().enumerate() {
        let (dtype, n) = entry.layout().ok_or_else(|| wrong(format!("table {i} has type {}", entry.dtype)))?;
        let (own, more) = usize::try_from(n)
            .ok()
            .and_then(|n| rest.split_at_checked(n))
            .ok_or_else(|| wrong("it is truncated".into()))?;
        rest = more;
        if tensor::tensor_root(own) != entry.root {
            return Err(wrong(format!("table {i} ({}) is damaged", entry.name)));
        }
        let values = own.chunks_exact(dtype.width()).map(|b| dtype.decode(b) as i32).collect();
        tables.push(Table { dtype, bytes: own.to_vec(), values });
    }
    if !rest.is_empty() {
        return Err(wrong(format!("{} bytes too many", rest.len())));
    }
    Ok(tables)
}

fn map_weights(dir: &Path, index: &Index) -> Result<(Mmap, Vec<usize>)> {
    let wrong = |what: String| ModelError::directory(dir, format!("{}: {what}", directory::WEIGHTS));
    let path = dir.join(directory::WEIGHTS);
    let file = File::open(&path).map_err(ModelError::io("opening", &path))?;
    let mut starts = Vec::with_capacity(index.weights.len());
    let mut end = 0u64;
    for e in &index.weights {
        if e.rows == 0 || e.cols == 0 || e.scales == 0 || e.scales > 16 {
            return Err(ModelError::directory(dir, format!("{}: matrix {} is empty", directory::INDEX, e.name)));
        }
        starts.push(usize::try_from(end).map_err(|_| wrong("too large for this machine".into()))?);
        end = end.checked_add(e.bytes()).ok_or_else(|| wrong("too large".into()))?;
    }
    let size = file.metadata().map_err(ModelError::io("reading", &path))?.len();
    if size != end {
        return Err(wrong(format!("it has {size} bytes, {end} are needed")));
    }
    // SAFETY: the map is read-only; the directory belongs to this user, who must not truncate it while it is in use (that
    // would end the process with SIGBUS).
    let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("mapping", &path))?;
    Ok((map, starts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Model>();
    }

    #[test]
    fn a_released_matrix_reads_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let model = crate::synthetic(&crate::SyntheticSpec::default(), dir.path().join("model")).unwrap();
        let before: Vec<Vec<u8>> = (0..model.index().weights.len()).map(|i| model.weight(i).bytes.to_vec()).collect();
        // One beyond the last does nothing.
        (0..=before.len()).for_each(|i| model.release_weight(i));
        for (i, bytes) in before.iter().enumerate() {
            assert!(model.weight(i).bytes == bytes, "matrix {i}");
        }
    }

    #[test]
    fn norms_are_the_sums_of_the_weights() {
        let mut state = 7u64;
        for format in RowFormat::ALL {
            for k in [32, 96, 576] {
                let mut row: Vec<u8> = (0..format.bytes(k))
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        ((state >> 33) as u8).max(129)
                    })
                    .collect();
                // Scales within their range: high bytes below 16.
                let groups = k / sworn_isa::GROUP;
                if format != RowFormat::I8 {
                    (0..groups).for_each(|g| row[2 * g] &= 15);
                }
                let want: u64 = format.weights(&row).unwrap().iter().map(|w| u64::from(w.unsigned_abs())).sum();
                assert_eq!(row_norm(format, &row), Some(want), "{format:?}");
                if format != RowFormat::I8 {
                    row[0] = 16;
                    assert_eq!(row_norm(format, &row), None);
                }
            }
        }
    }

    #[test]
    fn row_sums_of_long_extreme_rows() {
        assert_eq!(row_sum(&[-127; 5000]), (127 * 5000, -127));
        assert_eq!(row_sum(&[i8::MIN; 300]), (128 * 300, i8::MIN));
        assert_eq!(row_sum(&[0, 3, -4]), (7, -4));
    }
}
