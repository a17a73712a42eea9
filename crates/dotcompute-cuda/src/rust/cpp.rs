//! C++ of LLVM IR: what is made of a handler is compiled as one that was written in CUDA C++.
//!
//! Each function becomes one, each value a variable, each block a label. The turns of loops ask whether
//! to go on, and what panics fails the message in hand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use super::ir::{Block, Call, Does, Function, Instruction, Module, Read, Strange, Type, Value};

/// The function by which a handler is entered, and the sizes of what it takes: see `rust.rs`.
pub(super) const ENTRY: &str = "dotcompute_entry";
pub(super) const SIZES: &str = "DOTCOMPUTE_SIZES";

/// What the C++ begins with.
const PRELUDE: &str = include_str!("../../device/rust.cuh");

/// What `dotcompute.cuh` declares for handlers, and the types of the arguments.
const CALLS: [(&str, &[&str]); 6] = [
    ("rk_emit", &["void *"]),
    ("rk_send", &["uint32_t", "void *"]),
    ("rk_log", &["int32_t", "char *", "uint64_t"]),
    ("rk_fault", &["int32_t", "char *", "uint64_t"]),
    ("rk_tick", &[]),
    ("rk_clock", &[]),
];

/// Functions of C's library that a device has too, in double precision; in single one they end in `f`.
const REALS: [&str; 24] = [
    "sqrt", "cbrt", "exp", "exp2", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos",
    "atan", "atan2", "sinh", "cosh", "tanh", "pow", "hypot", "fmod", "floor", "ceil", "trunc",
    "fma",
];

/// A handler in C++, and the sizes of its message, its state and its reply.
pub(super) struct Translated {
    pub(super) text: String,
    pub(super) sizes: [u64; 3],
}

/// Makes of a handler's module the function `name`. `file` is what rustc calls the handler's file.
pub(super) fn translate(ir: &str, name: &str, file: &str) -> Read<Translated> {
    let module = Module::parse(ir, file)?;
    let sizes = module.globals.get(SIZES).and_then(|global| match &global.value {
        Some((_, value)) => words_of(value),
        None => None,
    });
    let sizes = sizes.ok_or_else(|| Strange::new("the sizes of records"))?;
    let mut translation = Translation { module: &module, file, ..Translation::of(&module) };
    let entry = translation.number(ENTRY);
    let mut bodies = Vec::new();
    let mut done = 0;
    while done < translation.order.len() {
        let function = module.function(&translation.order[done])?;
        bodies.push(translation.function(done, &function)?);
        done += 1;
    }
    let mut text = PRELUDE.to_owned();
    for part in [&translation.structs_text, &translation.globals_text] {
        text += part;
    }
    for without_body in [true, false] {
        for (number, (head, body)) in translation.heads.iter().zip(&bodies).enumerate() {
            let kind = match translation.calls_itself(number) {
                true => "static __device__",
                false => "DR_FN",
            };
            let body = if without_body { ";" } else { body };
            let _ = writeln!(text, "{kind} {head}{body}"); // into a String: cannot fail
        }
    }
    let _ = writeln!(
        text,
        "DC_HANDLER int32_t {name}(const void *message, void *state, void *reply, rk_ctx *ctx) {{\n\
         \x20   dr_frame frame = {{ctx, 0, 0}};\n\
         \x20   const int32_t result =\n\
         \x20       int32_t(f{entry}(frame, (dr_ptr)message, (dr_ptr)state, (dr_ptr)reply, (dr_ptr)ctx));\n\
         \x20   return frame.fault != 0 ? frame.fault : result;\n\
         }}"
    );
    Ok(Translated { text, sizes })
}

/// The three words of a constant.
fn words_of(value: &Value) -> Option<[u64; 3]> {
    match value {
        Value::Bytes(bytes) => {
            let word =
                |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
            Some([word(0)?, word(8)?, word(16)?])
        }
        Value::Aggregate(parts) => match parts.as_slice() {
            [(_, one)] => words_of(one),
            _ => None,
        },
        Value::Zero => Some([0; 3]),
        _ => None,
    }
}

struct Translation<'a> {
    module: &'a Module<'a>,
    file: &'a str,
    /// The functions, in the order of their numbers, and which others each calls.
    order: Vec<String>,
    numbers: HashMap<String, usize>,
    heads: Vec<String>,
    calls: Vec<HashSet<usize>>,
    structs: HashMap<Type, usize>,
    structs_text: String,
    globals: HashMap<String, usize>,
    globals_text: String,
}

/// From a block to another.
type Edge = (usize, usize);
/// What a block begins with: variable, type, value.
type Begins = Vec<(String, Type, Value)>;

/// What is known of the function at work.
struct Scope {
    number: usize,
    /// What is returned with a fault.
    nothing: String,
    locals: HashMap<String, (String, Type)>,
    labels: HashMap<String, usize>,
    /// The edges by which loops turn, from block to block.
    turns: HashSet<Edge>,
    /// What each block begins with, by edge.
    phis: HashMap<Edge, Begins>,
}

impl<'a> Translation<'a> {
    fn of(module: &'a Module<'a>) -> Self {
        Self {
            module,
            file: "",
            order: Vec::new(),
            numbers: HashMap::new(),
            heads: Vec::new(),
            calls: Vec::new(),
            structs: HashMap::new(),
            structs_text: String::new(),
            globals: HashMap::new(),
            globals_text: String::new(),
        }
    }

    /// The number of a function, which is translated in its turn.
    fn number(&mut self, function: &str) -> usize {
        if let Some(number) = self.numbers.get(function) {
            return *number;
        }
        let number = self.order.len();
        self.order.push(function.to_owned());
        self.numbers.insert(function.to_owned(), number);
        number
    }

    fn calls_itself(&self, function: usize) -> bool {
        let mut seen = HashSet::new();
        let mut left = vec![function];
        while let Some(caller) = left.pop() {
            for callee in &self.calls[caller] {
                if *callee == function {
                    return true;
                }
                if seen.insert(*callee) {
                    left.push(*callee);
                }
            }
        }
        false
    }

    fn type_name(&mut self, of: &Type) -> String {
        match of {
            Type::Void => "void".to_owned(),
            Type::Int(1) => "bool".to_owned(),
            Type::Int(width) => unsigned(*width).to_owned(),
            Type::Float => "float".to_owned(),
            Type::Double => "double".to_owned(),
            Type::Pointer => "dr_ptr".to_owned(),
            Type::Array(..) | Type::Struct(..) => {
                if let Some(number) = self.structs.get(of) {
                    return format!("dr_s{number}");
                }
                let mut fields = String::new();
                match of {
                    Type::Array(count, element) => {
                        let element = self.type_name(element);
                        let _ = write!(fields, "{element} m[{}];", (*count).max(1));
                    }
                    Type::Struct(parts, _) => {
                        for (place, part) in parts.iter().enumerate() {
                            let part = self.type_name(part);
                            let _ = write!(fields, "{part} m{place}; ");
                        }
                    }
                    _ => {}
                }
                let number = self.structs.len();
                self.structs.insert(of.clone(), number);
                let _ = writeln!(self.structs_text, "struct dr_s{number} {{ {fields}}};");
                format!("dr_s{number}")
            }
        }
    }

    fn function(&mut self, number: usize, function: &Function) -> Read<String> {
        let mut scope = Scope {
            number,
            nothing: match function.result {
                Type::Void => "return;".to_owned(),
                ref of => format!("return {}();", self.type_name(of)),
            },
            locals: HashMap::new(),
            labels: HashMap::new(),
            turns: turns(function),
            phis: HashMap::new(),
        };
        self.calls.push(HashSet::new());
        let mut parameters = String::new();
        for (place, (of, name)) in function.parameters.iter().enumerate() {
            let variable = format!("p{place}");
            let _ = write!(parameters, ", {} {variable}", self.type_name(of));
            scope.locals.insert(name.clone(), (variable, of.clone()));
        }
        let result = self.type_name(&function.result);
        let head = format!("{result} f{number}(dr_frame &frame{parameters})");
        let mut text = " {\n".to_owned();
        self.heads.push(head);
        for (place, block) in function.blocks.iter().enumerate() {
            scope.labels.insert(block.label.clone(), place);
        }
        // All variables first: a jump may not pass where one begins.
        let all = function.blocks.iter().flat_map(|block| &block.instructions);
        for instruction in all {
            let (Some(name), of) = (&instruction.result, result_of(&instruction.does)) else {
                continue;
            };
            let variable = format!("v{}", scope.locals.len());
            if let Does::Alloca(bytes, align) = instruction.does {
                let bytes = bytes.max(1);
                let _ = writeln!(text, "    alignas({align}) unsigned char {variable}_[{bytes}];");
            }
            if of != Type::Void {
                let _ = writeln!(text, "    {} {variable};", self.type_name(&of));
            }
            scope.locals.insert(name.clone(), (variable, of));
        }
        scope.phis = phis(function, &scope)?;
        for (place, Block { instructions, .. }) in function.blocks.iter().enumerate() {
            let _ = writeln!(text, "b{place}:;");
            for instruction in instructions {
                let translated = self.instruction(&scope, place, instruction);
                let translated = translated.map_err(|strange| Strange {
                    line: strange.line.or(instruction.line),
                    ..strange
                })?;
                if !translated.is_empty() {
                    let _ = writeln!(text, "    {translated}");
                }
            }
        }
        text += "}\n";
        Ok(text)
    }

    fn value(&mut self, scope: &Scope, of: &Type, value: &Value) -> Read<String> {
        Ok(match value {
            Value::Local(name) => match scope.locals.get(name) {
                Some((variable, _)) => variable.clone(),
                None => return Err(Strange::new(format!("the value '%{name}'"))),
            },
            Value::Offset(base, by) => {
                format!("({} + {by}ll)", self.value(scope, &Type::Pointer, base)?)
            }
            other => self.constant(of, other)?,
        })
    }

    fn constant(&mut self, of: &Type, value: &Value) -> Read<String> {
        Ok(match (of, value) {
            (_, Value::Global(name)) => self.global(name)?,
            (_, Value::Offset(base, by)) => {
                format!("({} + {by}ll)", self.constant(&Type::Pointer, base)?)
            }
            (Type::Int(width), Value::Int(number)) => integer(*width, *number),
            (Type::Pointer, Value::Int(number)) => format!("dr_ptr(uint64_t({number}ull))"),
            (Type::Double, Value::Float(bits)) => {
                format!("dr_bits<double>(uint64_t({bits:#x}ull))")
            }
            (Type::Float, Value::Float(bits)) => {
                let bits = (f64::from_bits(*bits) as f32).to_bits();
                format!("dr_bits<float>(uint32_t({bits:#x}u))")
            }
            (_, Value::Zero) => format!("{}()", self.type_name(of)),
            (Type::Array(..) | Type::Struct(..), Value::Aggregate(parts)) => {
                let parts: Vec<String> =
                    parts.iter().map(|(of, part)| self.constant(of, part)).collect::<Read<_>>()?;
                let (name, parts) = (self.type_name(of), parts.join(", "));
                match of {
                    Type::Array(..) => format!("{name}{{{{{parts}}}}}"),
                    _ => format!("{name}{{{parts}}}"),
                }
            }
            _ => return Err(Strange::new("a constant")),
        })
    }

    /// The address of what a module has: of functions it is null, since none is called by its address.
    fn global(&mut self, name: &str) -> Read<String> {
        if let Some(number) = self.globals.get(name) {
            return Ok(format!("dr_ptr(&g{number})"));
        }
        let module = self.module;
        let Some(global) = module.globals.get(name) else { return Ok("dr_ptr()".to_owned()) };
        let Some((of, value)) = global.value.as_ref().filter(|_| global.constant) else {
            return Err(Strange::new(
                "a static that can change, and a handler keeps nothing but its state",
            ));
        };
        let mut pieces = Vec::new();
        self.flatten(of, value, &mut pieces)?;
        let (mut members, mut values, mut at) = (String::new(), Vec::new(), 0_u64);
        for piece in &pieces {
            let place = values.len();
            match piece {
                Piece::Bytes(bytes) => {
                    let _ = write!(members, "unsigned char m{place}[{}]; ", bytes.len());
                    let bytes: Vec<String> = bytes.iter().map(u8::to_string).collect();
                    values.push(format!("{{{}}}", bytes.join(",")));
                }
                Piece::Pointer(_) if !at.is_multiple_of(8) => {
                    return Err(Strange::new("a constant in which a pointer is not aligned"));
                }
                Piece::Pointer(to) => {
                    let _ = write!(members, "const void *m{place}; ");
                    values.push(to.clone());
                }
            }
            at += piece.bytes();
        }
        let number = self.globals.len();
        self.globals.insert(name.to_owned(), number);
        let (align, values) = (global.align, values.join(", "));
        let _ = writeln!(
            self.globals_text,
            "alignas({align}) static __device__ const struct {{ {members}}} g{number} = {{{values}}};"
        );
        Ok(format!("dr_ptr(&g{number})"))
    }

    /// What a constant is made of, in the order of the memory.
    fn flatten(&mut self, of: &Type, value: &Value, pieces: &mut Vec<Piece>) -> Read<()> {
        let zeroes = |bytes: u64| vec![0; usize::try_from(bytes).unwrap_or(0)];
        match (of, value) {
            (_, Value::Zero) => push(pieces, zeroes(of.bytes())),
            (_, Value::Bytes(bytes)) => push(pieces, bytes.clone()),
            (Type::Int(_), Value::Int(number)) => {
                let bytes = usize::try_from(of.bytes()).unwrap_or(0);
                push(pieces, number.to_le_bytes()[..bytes].to_vec());
            }
            (Type::Double, Value::Float(bits)) => push(pieces, bits.to_le_bytes().to_vec()),
            (Type::Float, Value::Float(bits)) => {
                push(pieces, (f64::from_bits(*bits) as f32).to_le_bytes().to_vec());
            }
            (Type::Pointer, Value::Int(number)) => {
                push(pieces, number.to_le_bytes()[..8].to_vec());
            }
            (Type::Pointer, _) => {
                let address = match value {
                    Value::Global(name) if !self.module.globals.contains_key(name) => {
                        "nullptr".to_owned()
                    }
                    // Of the type that an initialiser may have without code.
                    _ => self.constant(of, value)?.replace("dr_ptr(&", "((const char *)&"),
                };
                pieces.push(Piece::Pointer(address));
            }
            (Type::Array(_, element), Value::Aggregate(parts)) => {
                for (_, part) in parts {
                    self.flatten(element, part, pieces)?;
                }
            }
            (Type::Struct(..), Value::Aggregate(parts)) => {
                let mut at = 0;
                for (place, (of_part, part)) in parts.iter().enumerate() {
                    push(pieces, zeroes(of.offset(place) - at));
                    self.flatten(of_part, part, pieces)?;
                    at = of.offset(place) + of_part.bytes();
                }
                push(pieces, zeroes(of.bytes() - at));
            }
            _ => return Err(Strange::new("a constant")),
        }
        Ok(())
    }

    /// The way from a block to another: what the latter begins with, and the jump.
    fn edge(&mut self, scope: &Scope, from: usize, to: &str) -> Read<String> {
        let to = *scope.labels.get(to).ok_or_else(|| Strange::new(format!("the block '{to}'")))?;
        let (mut first, mut then) = (String::new(), String::new());
        for (place, (variable, of, value)) in
            scope.phis.get(&(from, to)).into_iter().flatten().enumerate()
        {
            let (name, value) = (self.type_name(of), self.value(scope, of, value)?);
            let _ = write!(first, "const {name} t{place} = {value}; ");
            let _ = write!(then, "{variable} = t{place}; ");
        }
        let turn = match scope.turns.contains(&(from, to)) {
            true => format!("if (!dr_goes_on(frame)) {} ", scope.nothing),
            false => String::new(),
        };
        Ok(format!("{{ {first}{then}{turn}goto b{to}; }}"))
    }

    fn instruction(&mut self, scope: &Scope, block: usize, it: &Instruction) -> Read<String> {
        let Instruction { result, does, line } = it;
        let result = result.as_ref().and_then(|name| scope.locals.get(name)).map(|(name, _)| name);
        let made = match does {
            Does::Alloca(..) => format!("{}_", result.map_or("", String::as_str)),
            Does::Load(of, from, align) => {
                let from = self.value(scope, &Type::Pointer, from)?;
                let bytes = of.stored_bytes();
                self.check_memory(of)?;
                match of {
                    Type::Int(1) => format!("(dr_load<uint8_t, 1, {align}>({from}) & 1) != 0"),
                    _ => format!("dr_load<{}, {bytes}, {align}>({from})", self.type_name(of)),
                }
            }
            Does::Store((of, value), to, align) => {
                let to = self.value(scope, &Type::Pointer, to)?;
                let value = self.value(scope, of, value)?;
                self.check_memory(of)?;
                let name = if *of == Type::Int(1) { "uint8_t".into() } else { self.type_name(of) };
                let bytes = of.stored_bytes();
                return Ok(format!("dr_store<{bytes}, {align}>({to}, {name}({value}));"));
            }
            Does::Address(base, variable, fixed) => {
                let mut text = self.value(scope, &Type::Pointer, base)?;
                for ((of, index), bytes) in variable {
                    let index = self.value(scope, of, index)?;
                    let _ = write!(text, " + int64_t({}::sign({index})) * {bytes}ll", int(of)?);
                }
                format!("{text} + {fixed}ll")
            }
            Does::Binary(how, of, left, right) => {
                let (left, right) = (self.value(scope, of, left)?, self.value(scope, of, right)?);
                self.binary(how, of, &left, &right)?
            }
            Does::Negate(of, value) => format!("-{}", self.value(scope, of, value)?),
            Does::Compare(how, of, left, right) => {
                let (left, right) = (self.value(scope, of, left)?, self.value(scope, of, right)?);
                compare(how, of, &left, &right)?
            }
            Does::Select(condition, of, yes, no) => {
                let condition = self.value(scope, &Type::Int(1), condition)?;
                let (yes, no) = (self.value(scope, of, yes)?, self.value(scope, of, no)?);
                format!("{condition} ? {yes} : {no}")
            }
            Does::Cast(how, (from, value), to) => {
                let value = self.value(scope, from, value)?;
                self.cast(how, from, &value, to)?
            }
            Does::Freeze((of, value)) => self.value(scope, of, value)?,
            Does::Extract((of, value), places) => {
                format!("{}{}", self.value(scope, of, value)?, members(of, places)?)
            }
            Does::Insert((of, into), (part, value), places) => {
                let (into, value) = (self.value(scope, of, into)?, self.value(scope, part, value)?);
                let Some(variable) = result else { return Ok(String::new()) };
                let member = members(of, places)?;
                return Ok(format!("{variable} = {into}; {variable}{member} = {value};"));
            }
            Does::Phi(..) => return Ok(String::new()),
            Does::Call(call) => return self.call(scope, call, result, *line),
            Does::Jump(to) => return self.edge(scope, block, to),
            Does::Branch(condition, yes, no) => {
                let condition = self.value(scope, &Type::Int(1), condition)?;
                let (yes, no) = (self.edge(scope, block, yes)?, self.edge(scope, block, no)?);
                return Ok(format!("if ({condition}) {yes} else {no}"));
            }
            Does::Switch((of, on), other, cases) => {
                let Type::Int(width @ ..=64) = of else { return Err(Strange::new("a match")) };
                let mut text = format!("switch (uint64_t({})) {{", self.value(scope, of, on)?);
                for (value, to) in cases {
                    let edge = self.edge(scope, block, to)?;
                    let _ = write!(text, " case {}ull: {edge}", masked(*width, *value));
                }
                let edge = self.edge(scope, block, other)?;
                let _ = write!(text, " default: {edge} }}");
                return Ok(text);
            }
            Does::Return(None) => return Ok("return;".to_owned()),
            Does::Return(Some((of, value))) => {
                return Ok(format!("return {};", self.value(scope, of, value)?));
            }
            Does::Unreachable => return Ok("__builtin_unreachable();".to_owned()),
        };
        Ok(result.map_or_else(String::new, |variable| format!("{variable} = {made};")))
    }

    /// That C++ lays a type out as Rust does.
    fn check_memory(&self, of: &Type) -> Read<()> {
        match of {
            Type::Struct(_, true) => Err(Strange::new("a packed struct as a whole")),
            _ => Ok(()),
        }
    }

    fn binary(&mut self, how: &str, of: &Type, left: &str, right: &str) -> Read<String> {
        let name = self.type_name(of);
        Ok(match (of, how) {
            (Type::Int(1), "add" | "sub" | "xor") => format!("bool({left} ^ {right})"),
            (Type::Int(1), "mul" | "and") => format!("bool({left} & {right})"),
            (Type::Int(1), "or") => format!("bool({left} | {right})"),
            (Type::Int(2..), "add" | "sub" | "mul" | "sdiv" | "srem" | "shl" | "ashr") => {
                format!("{}::{how}({left}, {right})", int(of)?)
            }
            (Type::Int(2..), "and" | "or" | "xor" | "udiv" | "urem" | "lshr") => {
                let sign = match how {
                    "and" => "&",
                    "or" => "|",
                    "xor" => "^",
                    "udiv" => "/",
                    "urem" => "%",
                    _ => ">>",
                };
                format!("{name}({left} {sign} {right})")
            }
            (Type::Double, "frem") => format!("DR_C(fmod)({left}, {right})"),
            (Type::Float, "frem") => format!("DR_C(fmodf)({left}, {right})"),
            (Type::Float | Type::Double, "fadd" | "fsub" | "fmul" | "fdiv") => {
                format!("dr_{how}({left}, {right})")
            }
            _ => return Err(Strange::new(format!("'{how}' of this type"))),
        })
    }

    fn cast(&mut self, how: &str, from: &Type, value: &str, to: &Type) -> Read<String> {
        let name = self.type_name(to);
        Ok(match (how, from, to) {
            ("zext", ..) | ("fptrunc" | "fpext", ..) => format!("{name}({value})"),
            ("uitofp", Type::Int(_), _) => format!("{name}({value})"),
            ("sext", Type::Int(1), _) => format!("{value} ? {}::most : {name}(0)", int(to)?),
            ("sext", ..) => format!("{}::cut({name}({}::sign({value})))", int(to)?, int(from)?),
            ("trunc", _, Type::Int(1)) => format!("({value} & 1) != 0"),
            ("trunc", ..) => format!("{}::cut({name}({value}))", int(to)?),
            ("fptoui", ..) => format!("{name}({value})"),
            ("fptosi", ..) => format!("{}::fptosi_sat({value})", int(to)?),
            ("sitofp", Type::Int(1), _) => format!("{name}({value} ? -1 : 0)"),
            ("sitofp", ..) => format!("{name}({}::sign({value}))", int(from)?),
            ("bitcast", ..) if from == to => value.to_owned(),
            ("bitcast", ..) => format!("dr_bits<{name}>({value})"),
            ("ptrtoint" | "ptrtoaddr", ..) => format!("{name}(uint64_t({value}))"),
            ("inttoptr", ..) => format!("dr_ptr(uint64_t({value}))"),
            _ => return Err(Strange::new(format!("'{how}'"))),
        })
    }

    fn call(
        &mut self,
        scope: &Scope,
        call: &Call,
        result: Option<&String>,
        line: Option<u32>,
    ) -> Read<String> {
        let Some(function) = &call.function else {
            return Err(Strange::new("a call by an address: of a closure or a trait object"));
        };
        if function == "llvm.trap" || function == "llvm.ubsantrap" {
            return Ok(self.panic(scope, call, function, line));
        }
        let declared = self.module.declared.get(function);
        if declared.is_some_and(|declared| !declared.returns) {
            return Ok(self.panic(scope, call, function, line));
        }
        let arguments: Vec<String> = call
            .arguments
            .iter()
            .map(|(of, value)| self.value(scope, of, value))
            .collect::<Read<_>>()?;
        let name = self.type_name(&call.result);
        let store = |made: String| match result {
            Some(variable) if call.result != Type::Void => format!("{variable} = {made};"),
            _ => format!("{made};"),
        };
        if self.module.is_defined(function) {
            let number = self.number(function);
            self.calls[scope.number].insert(number);
            let arguments: String = arguments.iter().map(|one| format!(", {one}")).collect();
            let called = store(format!("f{number}(frame{arguments})"));
            return Ok(format!("{called} if (frame.fault != 0) {}", scope.nothing));
        }
        if let Some((_, types)) = CALLS.iter().find(|(name, _)| name == function) {
            let mut text = format!("{function}((rk_ctx *){}", arguments[0]);
            for (of, argument) in types.iter().zip(&arguments[1..]) {
                let _ = write!(text, ", ({of}){argument}");
            }
            text += ")";
            return Ok(store(match call.result {
                Type::Void => text,
                _ => format!("{name}({text})"),
            }));
        }
        if let Some(intrinsic) = function.strip_prefix("llvm.") {
            let made = self.intrinsic(intrinsic, call, &arguments)?;
            return Ok(store(made));
        }
        let double = function.strip_suffix('f').filter(|_| call.result == Type::Float);
        let real = double.unwrap_or(function);
        if REALS.contains(&real) && matches!(call.result, Type::Float | Type::Double) {
            let arguments = arguments.join(", ");
            return Ok(store(match real {
                "sqrt" => format!("dr_sqrt({arguments})"),
                _ => format!("DR_C({function})({arguments})"),
            }));
        }
        match (function.as_str(), arguments.as_slice()) {
            ("memcmp" | "bcmp", [left, right, bytes]) => {
                return Ok(store(format!("dr_compare({left}, {right}, {bytes})")));
            }
            ("memcpy" | "memmove", [to, from, bytes]) => {
                let moved = format!("dr_move({to}, {from}, {bytes})");
                return Ok(
                    result.map_or(format!("{moved};"), |it| format!("{moved}; {it} = {to};"))
                );
            }
            _ => {}
        }
        let called = call.called.as_ref().unwrap_or(function);
        Err(Strange::new(format!(
            "a call of '{called}', whose code is neither in the handler's file nor on a device"
        )))
    }

    /// What rustc calls where Rust panics: fails the message.
    fn panic(&self, scope: &Scope, call: &Call, function: &str, line: Option<u32>) -> String {
        let called = call.called.as_deref().unwrap_or(function);
        let (code, what) = match called {
            it if it.contains("bounds_check") || it.contains("slice") => {
                ("DC_FAULT_BOUNDS", "index out of bounds")
            }
            it if it.contains("div_by_zero") => ("DC_FAULT_PANIC", "division by zero"),
            it if it.contains("rem_by_zero") => ("DC_FAULT_PANIC", "remainder by zero"),
            it if it.contains("overflow") => ("DC_FAULT_PANIC", "overflow"),
            it if it.contains("option") => ("DC_FAULT_PANIC", "there was nothing"),
            it if it.contains("result") => ("DC_FAULT_PANIC", "there was an error"),
            _ => ("DC_FAULT_PANIC", "panicked"),
        };
        let place = call.arguments.iter().rev().find_map(|(_, value)| self.place(value));
        let text = match place.or(line) {
            Some(line) => format!("line {line}: {what}"),
            None => what.to_owned(),
        };
        format!("dr_panic(frame, {code}, \"{text}\"); {}", scope.nothing)
    }

    /// The line of a `Location` in the handler's file.
    fn place(&self, value: &Value) -> Option<u32> {
        let Value::Global(name) = value else { return None };
        let (_, value) = self.module.globals.get(name)?.value.as_ref()?;
        let Value::Aggregate(parts) = value else { return None };
        let [(_, Value::Global(file)), (_, Value::Bytes(rest))] = parts.as_slice() else {
            return None;
        };
        let (_, file) = self.module.globals.get(file)?.value.as_ref()?;
        let Value::Bytes(file) = file else { return None };
        let is_here = file.strip_suffix(b"\0").unwrap_or(file) == self.file.as_bytes();
        let line = rest.get(8..12)?.try_into().ok()?;
        is_here.then(|| u32::from_le_bytes(line))
    }

    fn intrinsic(&mut self, name: &str, call: &Call, arguments: &[String]) -> Read<String> {
        let unknown = || Strange::new(format!("the operation 'llvm.{name}'"));
        let of = call.arguments.first().map_or(&Type::Void, |(of, _)| of);
        let argument = |place: usize| arguments.get(place).map_or("", String::as_str);
        let aligned = |place: usize| call.aligned.get(place).copied().unwrap_or(1);
        let fixed = call.arguments.get(2).and_then(|(_, bytes)| match bytes {
            Value::Int(bytes) => Some(*bytes),
            _ => None,
        });
        let kind = name.split('.').next().unwrap_or(name);
        let end = name.rsplit('.').next().unwrap_or(name);
        let (a, b, c) = (argument(0), argument(1), argument(2));
        let to = self.type_name(&call.result);
        Ok(match (kind, of) {
            ("memcpy" | "memmove", _) => match fixed {
                // One read and one write, however they overlap.
                Some(bytes @ 1..=128) => {
                    let array = Type::Array(bytes as u64, Box::new(Type::Int(8)));
                    let (name, to, from) = (self.type_name(&array), aligned(0), aligned(1));
                    format!("dr_store<{bytes}, {to}>({a}, dr_load<{name}, {bytes}, {from}>({b}))")
                }
                _ if kind == "memcpy" => format!("dr_copy({a}, {b}, {c})"),
                _ => format!("dr_move({a}, {b}, {c})"),
            },
            ("memset", _) => match fixed {
                Some(bytes) => {
                    let align = aligned(0);
                    format!("DR_C(memset)(__builtin_assume_aligned({a}, {align}), {b}, {bytes})")
                }
                None => format!("dr_fill({a}, {b}, {c})"),
            },
            ("uadd" | "usub" | "umul" | "sadd" | "ssub" | "smul", Type::Int(2..))
                if name.contains(".with.overflow.") =>
            {
                let int = int(of)?;
                format!("{to}{{{int}::{}({a}, {b}), {int}::{kind}_over({a}, {b})}}", &kind[1..])
            }
            ("uadd" | "usub" | "sadd" | "ssub", Type::Int(2..)) if name.contains(".sat.") => {
                format!("{}::{kind}_sat({a}, {b})", int(of)?)
            }
            ("umin" | "umax" | "smin" | "smax", Type::Int(2..)) => {
                format!("{}::{kind}({a}, {b})", int(of)?)
            }
            ("umin", Type::Int(1)) => format!("bool({a} & {b})"),
            ("umax", Type::Int(1)) => format!("bool({a} | {b})"),
            ("fshl" | "fshr", Type::Int(2..)) => format!("{}::{kind}({a}, {b}, {c})", int(of)?),
            ("abs", Type::Int(2..))
            | ("bswap", Type::Int(2..))
            | ("bitreverse", Type::Int(2..)) => {
                format!("{}::{kind}({a})", int(of)?)
            }
            ("ctlz" | "cttz" | "ctpop", Type::Int(2..=64)) => format!("{}::{kind}({a})", int(of)?),
            ("ucmp" | "scmp", Type::Int(2..)) => {
                let (less, more) = (format!("{}lt", &kind[..1]), format!("{}gt", &kind[..1]));
                let less = compare(&format!("i{less}"), of, a, b)?;
                let more = compare(&format!("i{more}"), of, a, b)?;
                let Type::Int(width) = call.result else { return Err(unknown()) };
                let (minus, one) = (integer(width, -1), integer(width, 1));
                format!("({less}) ? {minus} : ({more}) ? {one} : {to}(0)")
            }
            ("expect", _) => a.to_owned(),
            ("fptoui" | "fptosi", _) if name.contains(".sat.") => {
                format!("{}::{kind}_sat({a})", int(&call.result)?)
            }
            ("sqrt", _) => format!("dr_sqrt({a})"),
            ("fmuladd", _) => format!("dr_fadd(dr_fmul({a}, {b}), {c})"),
            (
                "fabs" | "maxnum" | "minnum" | "copysign" | "floor" | "ceil" | "trunc" | "rint"
                | "nearbyint" | "round" | "roundeven" | "fma" | "exp" | "exp2" | "log" | "log2"
                | "log10" | "sin" | "cos" | "tan" | "pow",
                Type::Float | Type::Double,
            ) => {
                let real = match kind {
                    "maxnum" => "fmax",
                    "minnum" => "fmin",
                    "roundeven" | "nearbyint" => "rint",
                    other => other,
                };
                let single = if end == "f32" { "f" } else { "" };
                format!("DR_C({real}{single})({})", arguments.join(", "))
            }
            _ => return Err(unknown()),
        })
    }
}

/// A piece of a constant.
enum Piece {
    Bytes(Vec<u8>),
    Pointer(String),
}

impl Piece {
    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Pointer(_) => 8,
        }
    }
}

fn push(pieces: &mut Vec<Piece>, more: Vec<u8>) {
    match pieces.last_mut() {
        _ if more.is_empty() => {}
        Some(Piece::Bytes(bytes)) => bytes.extend(more),
        _ => pieces.push(Piece::Bytes(more)),
    }
}

/// The type of C++ that holds integers of `width` bits.
fn unsigned(width: u32) -> &'static str {
    match width {
        0..=8 => "uint8_t",
        9..=16 => "uint16_t",
        17..=32 => "uint32_t",
        33..=64 => "uint64_t",
        _ => "dr_u128",
    }
}

/// What does arithmetic with integers of a type.
fn int(of: &Type) -> Read<String> {
    match of {
        Type::Int(width @ 2..) => Ok(format!("dr_int<{}, {width}>", unsigned(*width))),
        Type::Int(_) => Err(Strange::new("arithmetic with truth values")),
        _ => Err(Strange::new("arithmetic with what is no integer")),
    }
}

fn masked(width: u32, number: i128) -> u128 {
    let bits = number.cast_unsigned();
    if width >= 128 { bits } else { bits & ((1 << width) - 1) }
}

fn integer(width: u32, number: i128) -> String {
    let bits = masked(width, number);
    match width {
        1 => (bits != 0).to_string(),
        ..=64 => format!("{}({bits:#x}ull)", unsigned(width)),
        _ => format!("(dr_u128({:#x}ull) << 64 | {:#x}ull)", bits >> 64, bits as u64),
    }
}

fn compare(how: &str, of: &Type, left: &str, right: &str) -> Read<String> {
    let sign = |how: &str| match how {
        "eq" => Some("=="),
        "ne" => Some("!="),
        "lt" => Some("<"),
        "le" => Some("<="),
        "gt" => Some(">"),
        "ge" => Some(">="),
        _ => None,
    };
    let unknown = || Strange::new(format!("the comparison '{how}'"));
    if let Some(how) = how.strip_prefix('i') {
        let (is_signed, name) = match how {
            "eq" | "ne" => (false, how),
            _ => (how.starts_with('s'), how.get(1..).unwrap_or_default()),
        };
        let sign = sign(name).ok_or_else(unknown)?;
        return Ok(match of {
            Type::Int(_) if is_signed => {
                let int = int(of)?;
                format!("{int}::sign({left}) {sign} {int}::sign({right})")
            }
            Type::Int(_) => format!("{left} {sign} {right}"),
            Type::Pointer => format!("uint64_t({left}) {sign} uint64_t({right})"),
            _ => return Err(unknown()),
        });
    }
    let how = how.get(1..).unwrap_or_default();
    Ok(match how {
        "ord" => format!("{left} == {left} && {right} == {right}"),
        "uno" => format!("{left} != {left} || {right} != {right}"),
        "one" => format!("{left} < {right} || {left} > {right}"),
        "ueq" => format!("!({left} < {right} || {left} > {right})"),
        "une" => format!("{left} != {right}"),
        "true" => "true".to_owned(),
        "false" => "false".to_owned(),
        _ => {
            let (is_ordered, name) = (how.starts_with('o'), how.get(1..).unwrap_or_default());
            // What is not ordered is what the opposite is not.
            let name = match (is_ordered, name) {
                (true, name) => name,
                (false, "lt") => "ge",
                (false, "le") => "gt",
                (false, "gt") => "le",
                (false, "ge") => "lt",
                _ => return Err(unknown()),
            };
            let sign = sign(name).ok_or_else(unknown)?;
            let not = if is_ordered { "" } else { "!" };
            format!("{not}({left} {sign} {right})")
        }
    })
}

/// The member of a struct or an array in another.
fn members(of: &Type, places: &[usize]) -> Read<String> {
    let (mut text, mut of) = (String::new(), of);
    for place in places {
        of = match of {
            Type::Array(_, element) => {
                let _ = write!(text, ".m[{place}]");
                element
            }
            Type::Struct(fields, _) => {
                let _ = write!(text, ".m{place}");
                fields.get(*place).ok_or_else(|| Strange::new("a field"))?
            }
            _ => return Err(Strange::new("a part of what has none")),
        };
    }
    Ok(text)
}

/// The type of what an instruction makes.
fn result_of(does: &Does) -> Type {
    match does {
        Does::Alloca(..) | Does::Address(..) => Type::Pointer,
        Does::Load(of, ..)
        | Does::Binary(_, of, ..)
        | Does::Negate(of, _)
        | Does::Select(_, of, ..)
        | Does::Cast(_, _, of)
        | Does::Freeze((of, _))
        | Does::Insert((of, _), ..)
        | Does::Phi(of, _) => of.clone(),
        Does::Compare(..) => Type::Int(1),
        Does::Extract((of, _), places) => {
            let mut of = of;
            for place in places {
                of = match of {
                    Type::Array(_, element) => element,
                    Type::Struct(fields, _) => fields.get(*place).unwrap_or(&Type::Void),
                    _ => &Type::Void,
                };
            }
            of.clone()
        }
        Does::Call(call) => call.result.clone(),
        _ => Type::Void,
    }
}

/// Where blocks go.
fn targets(block: &Block) -> Vec<&str> {
    match block.instructions.last().map(|last| &last.does) {
        Some(Does::Jump(to)) => vec![to],
        Some(Does::Branch(_, yes, no)) => vec![yes, no],
        Some(Does::Switch(_, other, cases)) => {
            cases.iter().map(|(_, to)| to).chain([other]).map(String::as_str).collect()
        }
        _ => Vec::new(),
    }
}

/// The edges that lead back to where the way came by: each loop has one.
fn turns(function: &Function) -> HashSet<Edge> {
    let blocks = &function.blocks;
    let places: BTreeMap<&str, usize> =
        blocks.iter().enumerate().map(|(place, block)| (block.label.as_str(), place)).collect();
    let after = |place: usize| -> Vec<usize> {
        targets(&blocks[place]).iter().filter_map(|to| places.get(to).copied()).collect()
    };
    let mut turns = HashSet::new();
    let (mut seen, mut on_way) = (HashSet::from([0]), HashSet::from([0]));
    let mut way = vec![(0, after(0))];
    while let Some((place, left)) = way.last_mut() {
        let place = *place;
        match left.pop() {
            Some(to) if on_way.contains(&to) => drop(turns.insert((place, to))),
            Some(to) if seen.insert(to) => {
                on_way.insert(to);
                way.push((to, after(to)));
            }
            Some(_) => {}
            None => {
                on_way.remove(&place);
                way.pop();
            }
        }
    }
    turns
}

/// What blocks begin with, by the edges that lead to them.
fn phis(function: &Function, scope: &Scope) -> Read<HashMap<Edge, Begins>> {
    let mut phis: HashMap<Edge, Begins> = HashMap::new();
    for (to, block) in function.blocks.iter().enumerate() {
        for Instruction { result, does, .. } in &block.instructions {
            let (Some(name), Does::Phi(of, ways)) = (result, does) else { continue };
            let (variable, _) = &scope.locals[name];
            let mut known = HashSet::new();
            for (value, from) in ways {
                let from = scope.labels.get(from);
                let from = *from.ok_or_else(|| Strange::new("a way to a block"))?;
                // A `switch` comes here by several of its cases, with the same value.
                if known.insert(from) {
                    let begins = phis.entry((from, to)).or_default();
                    begins.push((variable.clone(), of.clone(), value.clone()));
                }
            }
        }
    }
    Ok(phis)
}
