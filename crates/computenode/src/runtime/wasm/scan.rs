//! What a module must keep to before it is compiled.
//!
//! Compiling cannot be interrupted, and some shapes take the compiler far more time and memory than their size lets one
//! think: a function with many variables and many places where control comes together needs a table of the one by the
//! other. So a module is read through first, which takes time in proportion to its size, and refused where it goes beyond
//! what compiled programs are like.

use wasmparser::{FunctionBody, Operator, Parser, Payload, TypeRef};

/// The most functions.
const MAX_FUNCTIONS: u32 = 100_000;
/// The most entries of any other list: types, imports, exports, globals, segments.
const MAX_ENTRIES: u32 = 100_000;
/// The most tables and memories, imported ones included.
const MAX_TABLES: u32 = 4;
const MAX_MEMORIES: u32 = 1;
/// The largest function, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The most parameters and local variables of one function.
const MAX_LOCALS: u64 = 5_000;
/// The deepest nesting of control structures: a `switch` of so many cases.
const MAX_NESTING: usize = 1_000;
/// What a loop counts among control structures: every variable that changes within may need a place at its head.
const LOOP_WEIGHT: u64 = 4;
/// The most control structures times variables of one function, and of all together. Of loops within loops so much takes
/// the compiler seconds and some hundred MiB; four times as much takes it most of a minute and gigabytes.
const MAX_FUNCTION_WEIGHT: u64 = 1 << 20;
const MAX_MODULE_WEIGHT: u64 = 16 << 20;

/// Reads a module through; the error names the limit that it exceeds, or what is malformed.
pub(super) fn check(module: &[u8]) -> Result<(), String> {
    let mut scan = Scan::default();
    for payload in Parser::new(0).parse_all(module) {
        scan.payload(payload.map_err(|error| error.to_string())?)?;
    }
    Ok(())
}

/// What of a module has been read.
#[derive(Default)]
struct Scan {
    /// The parameters of each type.
    params: Vec<u64>,
    /// The type of each function that has a body.
    functions: Vec<u32>,
    bodies: usize,
    tables: u32,
    memories: u32,
    weight: u64,
}

impl Scan {
    fn payload(&mut self, payload: Payload<'_>) -> Result<(), String> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the compiler judges every other section")]
        match payload {
            Payload::TypeSection(types) => {
                within("types", types.count(), MAX_ENTRIES)?;
                for group in types {
                    for kind in group.map_err(|error| error.to_string())?.into_types() {
                        let params = match &kind.composite_type.inner {
                            wasmparser::CompositeInnerType::Func(function) => function.params().len() as u64,
                            _ => 0,
                        };
                        self.params.push(params);
                    }
                }
                Ok(())
            }
            Payload::ImportSection(imports) => {
                within("imports", imports.count(), MAX_ENTRIES)?;
                for import in imports.into_imports() {
                    match import.map_err(|error| error.to_string())?.ty {
                        TypeRef::Table(_) => self.tables += 1,
                        TypeRef::Memory(_) => self.memories += 1,
                        _ => {}
                    }
                }
                Ok(())
            }
            Payload::FunctionSection(functions) => {
                within("functions", functions.count(), MAX_FUNCTIONS)?;
                for kind in functions {
                    self.functions.push(kind.map_err(|error| error.to_string())?);
                }
                Ok(())
            }
            Payload::TableSection(tables) => {
                within("tables", self.tables.saturating_add(tables.count()), MAX_TABLES)
            }
            Payload::MemorySection(memories) => {
                within("memories", self.memories.saturating_add(memories.count()), MAX_MEMORIES)
            }
            Payload::GlobalSection(globals) => within("globals", globals.count(), MAX_ENTRIES),
            Payload::ExportSection(exports) => within("exports", exports.count(), MAX_ENTRIES),
            Payload::ElementSection(elements) => within("element segments", elements.count(), MAX_ENTRIES),
            Payload::DataSection(data) => within("data segments", data.count(), MAX_ENTRIES),
            Payload::CodeSectionEntry(body) => self.body(&body),
            _ => Ok(()),
        }
    }

    fn body(&mut self, body: &FunctionBody<'_>) -> Result<(), String> {
        let number = self.bodies;
        self.bodies += 1;
        let refuse = |what: String| Err(format!("function {number} has {what}"));
        let kind = self.functions.get(number).map_or(0, |kind| *kind as usize);
        let mut variables = self.params.get(kind).copied().unwrap_or_default();
        let bytes = body.range().len();
        if bytes > MAX_BODY_BYTES {
            return refuse(format!("{bytes} bytes; the most is {MAX_BODY_BYTES}"));
        }
        for group in body.get_locals_reader().map_err(|error| error.to_string())? {
            let (count, _) = group.map_err(|error| error.to_string())?;
            variables += u64::from(count);
        }
        if variables > MAX_LOCALS {
            return refuse(format!("{variables} parameters and locals; the most is {MAX_LOCALS}"));
        }
        let (structures, nesting) = structures(body).map_err(|error| error.to_string())?;
        if nesting > MAX_NESTING {
            return refuse(format!("control structures nested {nesting} deep; the most is {MAX_NESTING}"));
        }
        let weight = structures * variables;
        if weight > MAX_FUNCTION_WEIGHT {
            return refuse(format!(
                "{structures} control structures (a loop counts as {LOOP_WEIGHT}) and {variables} variables; the product may be \
                 {MAX_FUNCTION_WEIGHT}"
            ));
        }
        self.weight += weight;
        if self.weight > MAX_MODULE_WEIGHT {
            return Err(format!(
                "the functions' control structures times their variables are more than {MAX_MODULE_WEIGHT} together"
            ));
        }
        Ok(())
    }
}

/// How many control structures a function has, loops weighed, and how deep they are nested.
fn structures(body: &FunctionBody<'_>) -> wasmparser::Result<(u64, usize)> {
    let mut operators = body.get_operators_reader()?;
    let (mut count, mut depth, mut deepest) = (0u64, 0usize, 0usize);
    while !operators.eof() {
        #[expect(clippy::wildcard_enum_match_arm, reason = "hundreds of operators do not branch")]
        match operators.read()? {
            operator @ (Operator::Block { .. }
            | Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::TryTable { .. }
            | Operator::Try { .. }) => {
                count += if matches!(operator, Operator::Loop { .. }) { LOOP_WEIGHT } else { 1 };
                depth += 1;
                deepest = deepest.max(depth);
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok((count, deepest))
}

fn within(what: &str, count: u32, most: u32) -> Result<(), String> {
    if count <= most { Ok(()) } else { Err(format!("the module has {count} {what}; the most is {most}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(locals: usize, body: &str) -> String {
        format!("(func {} {body})", "(local i64)".repeat(locals))
    }

    fn checked(items: &str) -> Result<(), String> {
        check(&wat::parse_str(format!("(module {items})")).unwrap())
    }

    fn nested(depth: usize) -> String {
        // Not as nested parentheses: the text's parser has a limit of its own there.
        format!("{}{}", "loop ".repeat(depth), "end ".repeat(depth))
    }

    #[test]
    fn each_limit_holds() {
        let nops = |count| function(0, &"nop ".repeat(count));
        let exports = |count: u32| {
            let names: String = (0..count).map(|n| format!("(export \"{n}\" (func 0))")).collect();
            format!("(func) {names}")
        };
        let flat = |structures| function(4096, &"(block)".repeat(structures));
        for (fits, exceeds, what) in [
            (nops(1000), nops(MAX_BODY_BYTES), "bytes"),
            (function(5000, ""), function(5001, ""), "locals"),
            (function(1, &nested(1000)), function(1, &nested(1001)), "nested"),
            (flat(256), flat(257), "product"),
            (flat(256).repeat(16), flat(256).repeat(17), "together"),
            ("(table 1 funcref)".repeat(4), "(table 1 funcref)".repeat(5), "tables"),
            ("(memory 1)".to_owned(), "(memory 1)".repeat(2), "memories"),
            (exports(10), exports(MAX_ENTRIES + 1), "exports"),
            ("(func)".repeat(10), "(func)".repeat(MAX_FUNCTIONS as usize + 1), "functions"),
        ] {
            assert_eq!(checked(&fits), Ok(()), "{what}");
            let reason = checked(&exceeds).unwrap_err();
            assert!(reason.contains(what), "{reason} says nothing of {what}");
        }
    }

    #[test]
    fn parameters_count_as_variables() {
        let module = format!("(func (param {}) {})", "i32 ".repeat(900), "(block)".repeat(5000));
        assert!(checked(&module).unwrap_err().contains("product"));
    }
}
