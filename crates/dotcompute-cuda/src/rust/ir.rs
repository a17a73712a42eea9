//! What is read of the LLVM IR that rustc writes: as much as handlers have.

use std::collections::{HashMap, HashSet};

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Type {
    Void,
    Int(u32),
    Float,
    Double,
    Pointer,
    Array(u64, Box<Type>),
    Struct(Vec<Type>, bool),
}

impl Type {
    /// How many bytes one takes beside others of its type.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Void => 0,
            Self::Int(width) => (u64::from(*width).div_ceil(8)).next_power_of_two(),
            Self::Float => 4,
            Self::Double | Self::Pointer => 8,
            Self::Array(count, element) => count * element.bytes(),
            Self::Struct(fields, packed) => {
                let end = self.offset(fields.len());
                if *packed { end } else { end.next_multiple_of(self.align()) }
            }
        }
    }

    /// How many bytes a load or a store of one touches.
    pub(super) fn stored_bytes(&self) -> u64 {
        match self {
            Self::Int(width) => u64::from(*width).div_ceil(8),
            other => other.bytes(),
        }
    }

    fn align(&self) -> u64 {
        match self {
            Self::Array(_, element) => element.align(),
            Self::Struct(_, true) => 1,
            Self::Struct(fields, false) => fields.iter().map(Self::align).max().unwrap_or(1),
            other => other.bytes().max(1),
        }
    }

    /// Where the field of this number lies; where the struct ends, of the number behind the last.
    pub(super) fn offset(&self, field: usize) -> u64 {
        let Self::Struct(fields, packed) = self else { return 0 };
        let mut at = 0_u64;
        for (number, one) in fields.iter().enumerate() {
            if !packed {
                at = at.next_multiple_of(one.align());
            }
            if number == field {
                break;
            }
            at += one.bytes();
        }
        at
    }
}

/// A value, where one is used.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Local(String),
    Global(String),
    Int(i128),
    /// The bits of a number in double precision.
    Float(u64),
    /// Null, zeroes, or whatever.
    Zero,
    Bytes(Vec<u8>),
    Aggregate(Vec<(Type, Value)>),
    /// So many bytes behind another.
    Offset(Box<Value>, i64),
}

/// A value with its type.
pub(super) type Typed = (Type, Value);

/// One instruction: what it makes, and the line of the source that it is of.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub(super) result: Option<String>,
    pub(super) does: Does,
    pub(super) line: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) enum Does {
    Alloca(u64, u64),
    Load(Type, Value, u64),
    Store(Typed, Value, u64),
    /// So many bytes for each of the values, and so many besides, behind a pointer.
    Address(Value, Vec<(Typed, u64)>, i64),
    Binary(String, Type, Value, Value),
    Negate(Type, Value),
    Compare(String, Type, Value, Value),
    Select(Value, Type, Value, Value),
    Cast(String, Typed, Type),
    Freeze(Typed),
    Extract(Typed, Vec<usize>),
    Insert(Typed, Typed, Vec<usize>),
    Phi(Type, Vec<(Value, String)>),
    Call(Call),
    Jump(String),
    Branch(Value, String, String),
    Switch(Typed, String, Vec<(i128, String)>),
    Return(Option<Typed>),
    Unreachable,
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) result: Type,
    /// The name of the function; of an address it is none.
    pub(super) function: Option<String>,
    pub(super) arguments: Vec<Typed>,
    /// What is known of the alignment of each.
    pub(super) aligned: Vec<u64>,
    /// What rustc calls it, in a comment.
    pub(super) called: Option<String>,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) label: String,
    pub(super) instructions: Vec<Instruction>,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) result: Type,
    pub(super) parameters: Vec<(Type, String)>,
    pub(super) blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) struct Global {
    pub(super) constant: bool,
    pub(super) value: Option<Typed>,
    pub(super) align: u64,
}

/// A function that is not defined.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) returns: bool,
}

#[derive(Debug, Default)]
pub(super) struct Module<'a> {
    pub(super) globals: HashMap<String, Global>,
    pub(super) declared: HashMap<String, Declared>,
    /// The lines of each function's text: they are read when it is needed.
    functions: HashMap<String, Vec<&'a str>>,
    types: HashMap<String, Type>,
    /// Attributes by which a function does not return.
    never_return: Vec<String>,
    places: HashMap<&'a str, Place<'a>>,
    /// The file of each scope of places, and which of the files is the handler's.
    files: HashMap<&'a str, &'a str>,
    handlers: HashSet<&'a str>,
}

/// A place in a source: its line, its scope, and the place into which it was inlined.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    line: u32,
    scope: &'a str,
    outer: Option<&'a str>,
}

/// What is not understood, and of which line of the source it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strange {
    pub(super) line: Option<u32>,
    pub(super) what: String,
}

impl Strange {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { line: None, what: what.into() }
    }
}

pub(super) type Read<T> = Result<T, Strange>;

impl<'a> Module<'a> {
    /// Of the text of a module, and what rustc calls the handler's file.
    pub(super) fn parse(text: &'a str, file: &str) -> Read<Self> {
        let mut module = Self::default();
        let mut lines = text.lines();
        let mut globals = Vec::new();
        let mut declarations = Vec::new();
        while let Some(line) = lines.next() {
            if line.starts_with('@') {
                globals.push(line);
            } else if line.starts_with("declare ") {
                declarations.push(line);
            } else if line.starts_with("define ") {
                let mut all = vec![line];
                all.extend(lines.by_ref().take_while(|line| *line != "}"));
                let name = name_of(line).ok_or_else(|| Strange::new(shown(line)))?;
                module.functions.insert(name, all);
            } else if line.starts_with('%') {
                let mut reader = module.reader(line);
                let name = reader.local()?;
                reader.expect("=")?;
                reader.expect("type")?;
                // An opaque one is never used.
                if let Ok(of) = reader.of_type() {
                    module.types.insert(name, of);
                }
            } else if let Some(rest) = line.strip_prefix("attributes ") {
                if let Some((number, attributes)) = rest.split_once(" = ")
                    && attributes.split_whitespace().any(|one| one == "noreturn")
                {
                    module.never_return.push(number.to_owned());
                }
            } else if line.starts_with('!') {
                module.place(line, file);
            }
        }
        for line in globals {
            module.global(line)?;
        }
        for line in declarations {
            let name = name_of(line).ok_or_else(|| Strange::new(shown(line)))?;
            let returns = !line.split_whitespace().any(|word| {
                word == "noreturn" || module.never_return.iter().any(|never| never == word)
            });
            module.declared.insert(name, Declared { returns });
        }
        Ok(module)
    }

    /// `!12 = !DILocation(line: 7, column: 5, scope: !9, inlinedAt: !11)`, and what that leads to.
    fn place(&mut self, line: &'a str, file: &str) {
        let Some((number, rest)) = line.split_once(" = ") else { return };
        let rest = rest.strip_prefix("distinct ").unwrap_or(rest);
        let field = |name: &str| {
            let start = rest.find(name)? + name.len();
            rest[start..].split([',', ')']).next()
        };
        if rest.starts_with("!DILocation(") {
            let line = field("line: ").and_then(|line| line.parse().ok()).unwrap_or(0);
            let scope = field("scope: ").unwrap_or_default();
            self.places.insert(number, Place { line, scope, outer: field("inlinedAt: ") });
        } else if rest.starts_with("!DIFile(") {
            if field("filename: ").is_some_and(|name| name.trim_matches('"') == file) {
                self.handlers.insert(number);
            }
        } else if let Some(of) = field(" file: ") {
            self.files.insert(number, of);
        }
    }

    /// The line of the handler's file that an instruction is of: the outermost, of what was inlined.
    fn line_of(&self, instruction: &str) -> Option<u32> {
        let (_, place) = instruction.rsplit_once("!dbg ")?;
        let mut place = place.split([',', ' ']).next();
        let mut found = None;
        while let Some(Place { line, scope, outer }) = place.and_then(|it| self.places.get(it)) {
            let is_handlers = self.files.get(scope).is_some_and(|it| self.handlers.contains(it));
            if is_handlers && *line != 0 {
                found = Some(*line);
            }
            place = *outer;
        }
        found
    }

    fn global(&mut self, line: &'a str) -> Read<()> {
        let mut reader = self.reader(line);
        let name = reader.global()?;
        reader.expect("=")?;
        let mut constant = None;
        let mut external = false;
        while constant.is_none() {
            match reader.word()? {
                "constant" => constant = Some(true),
                "global" => constant = Some(false),
                "external" => external = true,
                // Another name of something: never used.
                "alias" => return Ok(()),
                _ => reader.group(),
            }
        }
        let of = reader.of_type()?;
        let value = if external { None } else { Some((of.clone(), reader.value(&of)?)) };
        let align = reader.align().unwrap_or(1);
        let global = Global { constant: constant == Some(true), value, align };
        self.globals.insert(name, global);
        Ok(())
    }

    pub(super) fn is_defined(&self, function: &str) -> bool {
        self.functions.contains_key(function)
    }

    fn reader<'b>(&'b self, text: &'b str) -> Reader<'b> {
        Reader { rest: text.trim_start(), types: &self.types, aligned: 1 }
    }

    pub(super) fn function(&self, name: &str) -> Read<Function> {
        let lines = &self.functions[name];
        let (result, parameters) = self.reader(lines[0]).signature()?;
        let mut blocks: Vec<Block> = Vec::new();
        let mut called = None;
        let mut lines = lines[1..].iter();
        while let Some(line) = lines.next() {
            if let Some(comment) = line.strip_prefix("; call ") {
                called = Some(comment.trim().to_owned());
                continue;
            }
            let body = line.split(" ; preds = ").next().unwrap_or(line).trim();
            if body.is_empty() || body.starts_with(';') || body.starts_with("#dbg") {
                continue;
            }
            if !line.starts_with(' ') {
                let label = body.strip_suffix(':').unwrap_or(body).trim_matches('"').to_owned();
                blocks.push(Block { label, instructions: Vec::new() });
                continue;
            }
            if blocks.is_empty() {
                // The first one may have no name, and then nobody goes there.
                blocks.push(Block { label: String::new(), instructions: Vec::new() });
            }
            let mut text = body.to_owned();
            if text.starts_with("switch ") && !text.contains(']') {
                for line in lines.by_ref() {
                    text.push(' ');
                    text.push_str(line.trim());
                    if line.trim_start().starts_with(']') {
                        break;
                    }
                }
            }
            let at = self.line_of(&text);
            let read = self.instruction(&text, called.take(), at);
            let read = read.map_err(|strange| Strange { line: strange.line.or(at), ..strange })?;
            if let Some(block) = blocks.last_mut() {
                block.instructions.extend(read);
            }
        }
        Ok(Function { result, parameters, blocks })
    }

    fn instruction(
        &self,
        text: &str,
        called: Option<String>,
        line: Option<u32>,
    ) -> Read<Option<Instruction>> {
        let mut reader = self.reader(text);
        let result = if reader.rest.starts_with('%') {
            let name = reader.local()?;
            reader.expect("=")?;
            Some(name)
        } else {
            None
        };
        let mut word = reader.word()?;
        while matches!(word, "tail" | "musttail" | "notail") {
            word = reader.word()?;
        }
        let does = match word {
            "alloca" => {
                let of = reader.of_type()?;
                Does::Alloca(of.bytes(), reader.align().unwrap_or(1))
            }
            "load" => {
                reader.plain("atomic")?;
                reader.accept("volatile");
                let of = reader.of_type()?;
                reader.expect(",")?;
                let (_, from) = reader.typed()?;
                Does::Load(of, from, reader.align().unwrap_or(1))
            }
            "store" => {
                reader.plain("atomic")?;
                reader.accept("volatile");
                let what = reader.typed()?;
                reader.expect(",")?;
                let (_, to) = reader.typed()?;
                Does::Store(what, to, reader.align().unwrap_or(1))
            }
            "getelementptr" => {
                reader.flags();
                let of = reader.of_type()?;
                reader.expect(",")?;
                let (_, base) = reader.typed()?;
                let mut indices = Vec::new();
                while reader.accept(",") && !reader.rest.starts_with('!') {
                    indices.push(reader.typed()?);
                }
                address(base, of, indices)?
            }
            "add" | "sub" | "mul" | "udiv" | "sdiv" | "urem" | "srem" | "shl" | "lshr" | "ashr"
            | "and" | "or" | "xor" | "fadd" | "fsub" | "fmul" | "fdiv" | "frem" => {
                reader.flags();
                let of = reader.of_type()?;
                let left = reader.value(&of)?;
                reader.expect(",")?;
                Does::Binary(word.to_owned(), of.clone(), left, reader.value(&of)?)
            }
            "fneg" => {
                reader.flags();
                let (of, value) = reader.typed()?;
                Does::Negate(of, value)
            }
            "icmp" | "fcmp" => {
                reader.flags();
                let how = format!("{}{}", &word[..1], reader.word()?);
                let of = reader.of_type()?;
                let left = reader.value(&of)?;
                reader.expect(",")?;
                Does::Compare(how, of.clone(), left, reader.value(&of)?)
            }
            "select" => {
                reader.flags();
                let (_, condition) = reader.typed()?;
                reader.expect(",")?;
                let (of, yes) = reader.typed()?;
                reader.expect(",")?;
                let (_, no) = reader.typed()?;
                Does::Select(condition, of, yes, no)
            }
            "zext" | "sext" | "trunc" | "fptrunc" | "fpext" | "fptoui" | "fptosi" | "uitofp"
            | "sitofp" | "bitcast" | "ptrtoint" | "inttoptr" | "ptrtoaddr" => {
                reader.flags();
                let from = reader.typed()?;
                reader.expect("to")?;
                Does::Cast(word.to_owned(), from, reader.of_type()?)
            }
            "freeze" => Does::Freeze(reader.typed()?),
            "extractvalue" => {
                let from = reader.typed()?;
                Does::Extract(from, reader.places()?)
            }
            "insertvalue" => {
                let into = reader.typed()?;
                reader.expect(",")?;
                let what = reader.typed()?;
                Does::Insert(into, what, reader.places()?)
            }
            "phi" => {
                reader.flags();
                let of = reader.of_type()?;
                let mut from = Vec::new();
                loop {
                    reader.expect("[")?;
                    let value = reader.value(&of)?;
                    reader.expect(",")?;
                    from.push((value, reader.local()?));
                    reader.expect("]")?;
                    if !reader.rest.starts_with(", [") {
                        break;
                    }
                    reader.expect(",")?;
                }
                Does::Phi(of, from)
            }
            "br" if reader.accept("label") => Does::Jump(reader.local()?),
            "br" => {
                let (_, condition) = reader.typed()?;
                reader.expect(",")?;
                reader.expect("label")?;
                let yes = reader.local()?;
                reader.expect(",")?;
                reader.expect("label")?;
                Does::Branch(condition, yes, reader.local()?)
            }
            "switch" => {
                let on = reader.typed()?;
                reader.expect(",")?;
                reader.expect("label")?;
                let other = reader.local()?;
                reader.expect("[")?;
                let mut cases = Vec::new();
                while !reader.accept("]") {
                    let (_, value) = reader.typed()?;
                    let Value::Int(value) = value else { return Err(reader.strange()) };
                    reader.expect(",")?;
                    reader.expect("label")?;
                    cases.push((value, reader.local()?));
                }
                Does::Switch(on, other, cases)
            }
            "ret" => {
                let of = reader.of_type()?;
                let value = match of {
                    Type::Void => None,
                    of => Some((of.clone(), reader.value(&of)?)),
                };
                Does::Return(value)
            }
            "unreachable" => Does::Unreachable,
            "call" => {
                let result = reader.after_attributes()?;
                if reader.peek() == "asm" {
                    return Err(Strange::new("assembly"));
                }
                let function = match reader.rest.starts_with('@') {
                    true => Some(reader.global()?),
                    false => None,
                };
                let is_nothing = |name: &str| {
                    ["llvm.dbg.", "llvm.lifetime.", "llvm.experimental.noalias", "llvm.assume"]
                        .iter()
                        .any(|nothing| name.starts_with(nothing))
                };
                if function.as_deref().is_some_and(is_nothing) {
                    return Ok(None);
                }
                let (arguments, aligned) = match function.is_some() {
                    true => reader.arguments()?,
                    false => Default::default(),
                };
                Does::Call(Call { result, function, arguments, aligned, called })
            }
            "fence" | "cmpxchg" | "atomicrmw" => return Err(atomic()),
            other => return Err(Strange::new(format!("the instruction '{other}'"))),
        };
        Ok(Some(Instruction { result, does, line }))
    }
}

fn atomic() -> Strange {
    Strange::new("an atomic operation, and a handler shares no memory")
}

/// What lies behind `base` by these indices into what is of type `of`.
fn address(base: Value, mut of: Type, indices: Vec<Typed>) -> Read<Does> {
    let (mut variable, mut fixed) = (Vec::new(), 0_i64);
    for (number, index) in indices.into_iter().enumerate() {
        if number > 0 {
            match (of, &index.1) {
                (Type::Array(_, element), _) => of = *element,
                (Type::Struct(fields, packed), Value::Int(field)) => {
                    let field = usize::try_from(*field).unwrap_or(usize::MAX);
                    let inner = fields.get(field).cloned();
                    fixed += Type::Struct(fields, packed).offset(field) as i64;
                    of = inner.ok_or_else(|| Strange::new("an index of a struct"))?;
                    continue;
                }
                _ => return Err(Strange::new("an address in what is neither array nor struct")),
            }
        }
        let bytes = of.bytes();
        match index.1 {
            Value::Int(times) => fixed += times as i64 * bytes as i64,
            Value::Zero => {}
            _ => variable.push((index, bytes)),
        }
    }
    Ok(Does::Address(base, variable, fixed))
}

/// Reads a line from left to right.
struct Reader<'a> {
    rest: &'a str,
    types: &'a HashMap<String, Type>,
    /// What the attributes of the last value said of its alignment.
    aligned: u64,
}

/// What of an instruction only allows optimisations.
const FLAGS: [&str; 16] = [
    "nuw", "nsw", "exact", "disjoint", "samesign", "inbounds", "nusw", "nneg", "fast", "nnan",
    "ninf", "nsz", "arcp", "contract", "afn", "reassoc",
];

impl<'a> Reader<'a> {
    fn strange(&self) -> Strange {
        Strange::new(format!("'{}'", shown(self.rest)))
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest[bytes..].trim_start();
    }

    fn accept(&mut self, text: &str) -> bool {
        let is_word = text.ends_with(|last: char| last.is_ascii_alphanumeric());
        let found = self
            .rest
            .strip_prefix(text)
            .is_some_and(|rest| !(is_word && rest.starts_with(|next: char| is_of_word(next))));
        if found {
            self.skip(text.len());
        }
        found
    }

    fn expect(&mut self, text: &str) -> Read<()> {
        if self.accept(text) { Ok(()) } else { Err(self.strange()) }
    }

    /// Refuses an access that is atomic.
    fn plain(&mut self, word: &str) -> Read<()> {
        if self.accept(word) { Err(atomic()) } else { Ok(()) }
    }

    fn peek(&self) -> &'a str {
        let end = self.rest.find(|next| !is_of_word(next)).unwrap_or(self.rest.len());
        &self.rest[..end]
    }

    fn word(&mut self) -> Read<&'a str> {
        let word = self.peek();
        if word.is_empty() {
            return Err(self.strange());
        }
        self.skip(word.len());
        Ok(word)
    }

    fn flags(&mut self) {
        while FLAGS.contains(&self.peek()) {
            self.skip(self.peek().len());
            self.group();
        }
    }

    /// Skips what stands in parentheses here, if anything does.
    fn group(&mut self) {
        if !self.rest.starts_with('(') {
            return;
        }
        let mut depth = 0_u32;
        for (at, letter) in self.rest.char_indices() {
            match letter {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.skip(at + 1);
                return;
            }
        }
    }

    /// Skips attributes, up to what `ends` them.
    fn attributes(&mut self, ends: impl Fn(&Self) -> bool) -> Read<()> {
        while !ends(self) {
            if let Some(rest) = self.rest.strip_prefix('"') {
                let end = rest.find('"').ok_or_else(|| self.strange())?;
                self.skip(end + 2);
                self.accept("=");
            } else if self.accept("align") {
                if !self.rest.starts_with('(') {
                    self.aligned = self.number()?;
                }
            } else if self.rest.starts_with('#') {
                let end = self.rest.find(' ').unwrap_or(self.rest.len());
                self.skip(end);
            } else {
                self.word()?;
            }
            self.group();
        }
        Ok(())
    }

    /// The type behind attributes of what is returned.
    fn after_attributes(&mut self) -> Read<Type> {
        self.attributes(Self::is_at_type)?;
        self.of_type()
    }

    fn is_at_type(&self) -> bool {
        let word = self.peek();
        matches!(
            word,
            "void" | "ptr" | "float" | "double" | "half" | "bfloat" | "fp128" | "x86_fp80"
        ) || word.strip_prefix('i').is_some_and(|width| {
            !width.is_empty() && width.bytes().all(|digit| digit.is_ascii_digit())
        }) || self.rest.starts_with(['[', '{', '<', '%'])
    }

    fn of_type(&mut self) -> Read<Type> {
        if self.rest.starts_with('%') {
            let name = self.local()?;
            return self.types.get(&name).cloned().ok_or_else(|| Strange::new("a type"));
        }
        if self.accept("[") {
            let count = self.number()?;
            self.expect("x")?;
            let element = self.of_type()?;
            self.expect("]")?;
            return Ok(Type::Array(count, Box::new(element)));
        }
        let packed = self.accept("<{");
        if packed || self.accept("{") {
            let end = if packed { "}>" } else { "}" };
            let mut fields = Vec::new();
            while !self.accept(end) {
                fields.push(self.of_type()?);
                self.accept(",");
            }
            return Ok(Type::Struct(fields, packed));
        }
        if self.rest.starts_with('<') {
            return Err(Strange::new("a vector"));
        }
        let word = self.word()?;
        match (word, word.strip_prefix('i').map(str::parse::<u32>)) {
            ("void", _) => Ok(Type::Void),
            ("float", _) => Ok(Type::Float),
            ("double", _) => Ok(Type::Double),
            ("ptr", _) => Ok(Type::Pointer),
            (_, Some(Ok(width))) if (1..=128).contains(&width) => Ok(Type::Int(width)),
            _ => Err(Strange::new(format!("the type '{word}'"))),
        }
    }

    fn number(&mut self) -> Read<u64> {
        let word = self.word()?;
        word.parse().map_err(|_| Strange::new(format!("the number '{word}'")))
    }

    fn name(&mut self, sign: char) -> Read<String> {
        let rest = self.rest.strip_prefix(sign).ok_or_else(|| self.strange())?;
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').ok_or_else(|| self.strange())?;
            self.skip(end + 3);
            return Ok(quoted[..end].to_owned());
        }
        let end = rest.find(|next| !is_of_name(next)).unwrap_or(rest.len());
        self.skip(end + 1);
        Ok(rest[..end].to_owned())
    }

    fn local(&mut self) -> Read<String> {
        self.name('%')
    }

    fn global(&mut self) -> Read<String> {
        self.name('@')
    }

    fn is_at_value(&self) -> bool {
        self.rest.starts_with(['%', '@', '-', '[', '{', '<'])
            || self.rest.starts_with("c\"")
            || self.rest.starts_with(|first: char| first.is_ascii_digit())
            || matches!(
                self.peek(),
                "true"
                    | "false"
                    | "null"
                    | "undef"
                    | "poison"
                    | "zeroinitializer"
                    | "getelementptr"
                    | "inttoptr"
                    | "ptrtoint"
                    | "ptrtoaddr"
                    | "splat"
            )
    }

    /// A value with its type before it, and attributes between the two.
    fn typed(&mut self) -> Read<Typed> {
        let of = self.of_type()?;
        self.aligned = 1;
        self.attributes(Self::is_at_value)?;
        let value = self.value(&of)?;
        Ok((of, value))
    }

    fn value(&mut self, of: &Type) -> Read<Value> {
        if self.rest.starts_with('%') {
            return Ok(Value::Local(self.local()?));
        }
        if self.rest.starts_with('@') {
            return Ok(Value::Global(self.global()?));
        }
        if let Some(text) = self.rest.strip_prefix("c\"") {
            let end = text.find('"').ok_or_else(|| self.strange())?;
            self.skip(end + 3);
            return bytes_of(&text[..end]).map(Value::Bytes);
        }
        for (start, end) in [("[", "]"), ("<{", "}>"), ("{", "}")] {
            if self.accept(start) {
                let mut fields = Vec::new();
                while !self.accept(end) {
                    fields.push(self.typed()?);
                    self.accept(",");
                }
                return Ok(Value::Aggregate(fields));
            }
        }
        let end = self.rest.find([',', ' ', ')', ']', '}']).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let strange = self.strange();
        self.skip(end);
        match word {
            "true" => Ok(Value::Int(1)),
            "false" => Ok(Value::Int(0)),
            "null" | "undef" | "poison" | "zeroinitializer" => Ok(Value::Zero),
            "inttoptr" => {
                self.expect("(")?;
                let (_, value) = self.typed()?;
                self.expect("to")?;
                self.of_type()?;
                self.expect(")")?;
                Ok(value)
            }
            "getelementptr" => {
                self.flags();
                self.expect("(")?;
                let of = self.of_type()?;
                self.expect(",")?;
                let (_, base) = self.typed()?;
                let mut indices = Vec::new();
                while self.accept(",") {
                    indices.push(self.typed()?);
                }
                self.expect(")")?;
                match address(base, of, indices)? {
                    Does::Address(base, variable, by) if variable.is_empty() => {
                        Ok(Value::Offset(Box::new(base), by))
                    }
                    _ => Err(strange),
                }
            }
            _ => match of {
                Type::Float | Type::Double => {
                    let bits = match word.strip_prefix("0x") {
                        Some(bits) => u64::from_str_radix(bits, 16).ok(),
                        None => word.parse::<f64>().ok().map(f64::to_bits),
                    };
                    bits.map(Value::Float).ok_or(strange)
                }
                _ => word.parse().map(Value::Int).map_err(|_| strange),
            },
        }
    }

    /// The arguments of a call, and their alignments.
    fn arguments(&mut self) -> Read<(Vec<Typed>, Vec<u64>)> {
        self.expect("(")?;
        let (mut arguments, mut aligned) = (Vec::new(), Vec::new());
        while !self.accept(")") {
            arguments.push(self.typed()?);
            aligned.push(self.aligned);
            self.accept(",");
        }
        Ok((arguments, aligned))
    }

    /// `, 0, 1`: up to the end, or to what is said about the instruction.
    fn places(&mut self) -> Read<Vec<usize>> {
        let mut places = Vec::new();
        while self.rest.strip_prefix(", ").is_some_and(|next| !next.starts_with('!')) {
            self.expect(",")?;
            places.push(usize::try_from(self.number()?).unwrap_or(usize::MAX));
        }
        Ok(places)
    }

    /// The alignment that the rest tells.
    fn align(&self) -> Option<u64> {
        let (_, rest) = self.rest.split_once("align ")?;
        rest.split([',', ' ']).next()?.parse().ok()
    }

    /// Of a function: what it returns, and its parameters.
    fn signature(mut self) -> Read<(Type, Vec<(Type, String)>)> {
        self.expect("define")?;
        let result = self.after_attributes()?;
        self.global()?;
        self.expect("(")?;
        let mut parameters = Vec::new();
        while !self.accept(")") {
            let of = self.of_type()?;
            self.attributes(|reader| reader.rest.starts_with('%'))?;
            parameters.push((of, self.local()?));
            self.accept(",");
        }
        Ok((result, parameters))
    }
}

fn is_of_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-' | '+')
}

fn is_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-' | '$')
}

/// The name of the function that a line declares or defines.
fn name_of(line: &str) -> Option<String> {
    let rest = &line[line.find('@')? + 1..];
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().map(str::to_owned),
        None => rest.split('(').next().map(str::to_owned),
    }
}

/// `seven \C0\00`
fn bytes_of(text: &str) -> Read<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'\\' {
            bytes.push(*first);
        } else if behind.first() == Some(&b'\\') {
            bytes.push(b'\\');
            rest = &behind[1..];
        } else {
            let digits = behind.get(..2).and_then(|digits| str::from_utf8(digits).ok());
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            bytes.push(byte.ok_or_else(|| Strange::new("a text"))?);
            rest = &behind[2..];
        }
    }
    Ok(bytes)
}

/// As much of a line as a message shows.
fn shown(line: &str) -> String {
    line.chars().take(80).collect()
}
