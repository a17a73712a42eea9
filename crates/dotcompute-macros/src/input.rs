//! The struct, its attributes, and what is refused about them.

use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprLit, Fields, GenericParam, Generics, Ident, Lit,
    LitInt, LitStr, Meta, Path, Result, Token, Type, parse_quote,
};

/// A type that derives `Message`.
pub(crate) struct Input {
    pub(crate) ident: Ident,
    pub(crate) generics: Generics,
    /// Where dotcompute is found.
    pub(crate) root: Path,
    pub(crate) name: String,
    pub(crate) priority: Option<Expr>,
    pub(crate) wire: bool,
    pub(crate) record: bool,
    /// The named fields; empty if neither `wire` nor `record` needs them.
    pub(crate) fields: Vec<Field>,
}

/// A field with a name.
pub(crate) struct Field {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    /// Its key on the wire.
    pub(crate) key: String,
    pub(crate) default: bool,
    pub(crate) skip: bool,
}

/// The keys that a message's map has besides its fields.
const RESERVED_KEYS: [&str; 4] = ["message_id", "priority", "correlation_id", "__type__"];

impl Input {
    pub(crate) fn new(input: DeriveInput) -> Result<Self> {
        let attributes = TypeAttributes::new(&input.attrs)?;
        if let Some(GenericParam::Lifetime(lifetime)) =
            input.generics.params.iter().find(|p| matches!(p, GenericParam::Lifetime(_)))
        {
            let message = "a message owns its data: it cannot have a lifetime";
            return Err(Error::new(lifetime.span(), message));
        }
        let wire = attributes.no_wire.is_none();
        let fields = fields(&input, wire, attributes.record.is_some())?;
        if let Some(record) = &attributes.record {
            check_record(&input, record, &fields)?;
        }
        Ok(Self {
            name: attributes
                .name
                .map_or_else(|| input.ident.unraw().to_string(), |name| name.value()),
            root: attributes.root.unwrap_or_else(|| parse_quote!(::dotcompute)),
            ident: input.ident,
            generics: input.generics,
            priority: attributes.priority,
            wire,
            record: attributes.record.is_some(),
            fields,
        })
    }
}

#[derive(Default)]
struct TypeAttributes {
    name: Option<LitStr>,
    priority: Option<Expr>,
    no_wire: Option<Path>,
    record: Option<Path>,
    root: Option<Path>,
}

impl TypeAttributes {
    fn new(attributes: &[Attribute]) -> Result<Self> {
        let mut found = Self::default();
        for attribute in attributes.iter().filter(|a| a.path().is_ident("message")) {
            attribute.parse_nested_meta(|meta| {
                let path = meta.path.clone();
                if path.is_ident("name") {
                    let name: LitStr = meta.value()?.parse()?;
                    if name.value().is_empty() {
                        return Err(Error::new(name.span(), "a type name cannot be empty"));
                    }
                    set(&mut found.name, name, &path)
                } else if path.is_ident("priority") {
                    set(&mut found.priority, priority(meta.value()?.parse()?)?, &path)
                } else if path.is_ident("no_wire") {
                    set(&mut found.no_wire, path.clone(), &path)
                } else if path.is_ident("record") {
                    set(&mut found.record, path.clone(), &path)
                } else if path.is_ident("crate") {
                    let root: LitStr = meta.value()?.parse()?;
                    set(&mut found.root, root.parse_with(Path::parse_mod_style)?, &path)
                } else {
                    Err(meta.error("expected one of: name, priority, no_wire, record, crate"))
                }
            })?;
        }
        Ok(found)
    }
}

/// Checks a number here, where the error is the clearest; the type of a constant says the rest.
fn priority(value: Expr) -> Result<Expr> {
    const MESSAGE: &str = "a priority is an integer from 0 to 255";
    match &value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => {
            let in_range = |number: &LitInt| number.base10_parse::<u8>().is_ok();
            if in_range(number) { Ok(value) } else { Err(Error::new(value.span(), MESSAGE)) }
        }
        Expr::Path(_) => Ok(value),
        _ => Err(Error::new(value.span(), MESSAGE)),
    }
}

/// Keeps an attribute's value, once.
fn set<T>(place: &mut Option<T>, value: T, path: &Path) -> Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::new(path.span(), "this attribute is given twice")),
    }
}

fn fields(input: &DeriveInput, wire: bool, record: bool) -> Result<Vec<Field>> {
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(_) if !wire && !record => {
            return Ok(Vec::new());
        }
        Data::Enum(data) => {
            let message = "an enum has no wire format: mark it `#[message(no_wire)]`, or make it a \
                           struct with named fields";
            return Err(Error::new(data.enum_token.span(), message));
        }
        Data::Union(data) => {
            return Err(Error::new(data.union_token.span(), "a union cannot be a message"));
        }
    };
    let fields = match fields {
        Fields::Named(fields) => &fields.named,
        Fields::Unit => return Ok(Vec::new()),
        Fields::Unnamed(_) if !wire && !record => return Ok(Vec::new()),
        Fields::Unnamed(fields) => {
            let message = "the wire format needs names: name the fields, or mark the struct \
                           `#[message(no_wire)]`";
            return Err(Error::new(fields.span(), message));
        }
    };
    let mut found: Vec<Field> = Vec::new();
    for field in fields {
        let Some(ident) = field.ident.clone() else { continue };
        let (mut rename, mut default, mut skip) = (None::<LitStr>, None, None);
        for attribute in field.attrs.iter().filter(|a| a.path().is_ident("message")) {
            if !wire {
                let message = "field attributes say how a field is written on the wire, and this \
                               message is `no_wire`";
                return Err(Error::new(attribute.span(), message));
            }
            attribute.parse_nested_meta(|meta| {
                let path = meta.path.clone();
                if path.is_ident("rename") {
                    set(&mut rename, meta.value()?.parse()?, &path)
                } else if path.is_ident("default") {
                    set(&mut default, (), &path)
                } else if path.is_ident("skip") {
                    set(&mut skip, (), &path)
                } else {
                    Err(meta.error("expected one of: default, rename, skip"))
                }
            })?;
        }
        let key = rename.as_ref().map_or_else(|| ident.unraw().to_string(), LitStr::value);
        let key_span = rename.as_ref().map_or_else(|| ident.span(), LitStr::span);
        if let (Some(rename), Some(())) = (&rename, skip) {
            return Err(Error::new(rename.span(), "a field that is skipped has no key"));
        }
        if wire && skip.is_none() {
            if RESERVED_KEYS.contains(&key.as_str()) {
                let message = format!("`{key}` is a key of the envelope: name the field otherwise");
                return Err(Error::new(key_span, message));
            }
            if found.iter().any(|other| !other.skip && other.key == key) {
                let message = format!("another field has the key `{key}` too");
                return Err(Error::new(key_span, message));
            }
        }
        found.push(Field {
            ident,
            ty: field.ty.clone(),
            key,
            default: default.is_some(),
            skip: skip.is_some(),
        });
    }
    Ok(found)
}

fn check_record(input: &DeriveInput, record: &Path, fields: &[Field]) -> Result<()> {
    let refuse = |message: &str| Err(Error::new(record.span(), message));
    if !input.generics.params.is_empty() {
        return refuse("a record has one layout: it cannot be generic");
    }
    if fields.is_empty() {
        return refuse("a record has at least one named field");
    }
    let (mut is_c, mut is_packed) = (false, false);
    for attribute in input.attrs.iter().filter(|a| a.path().is_ident("repr")) {
        let Meta::List(list) = &attribute.meta else { continue };
        let options =
            list.parse_args_with(syn::punctuated::Punctuated::<Meta, Token![,]>::parse_terminated)?;
        is_c |= options.iter().any(|option| option.path().is_ident("C"));
        is_packed |= options.iter().any(|option| option.path().is_ident("packed"));
    }
    if !is_c {
        return refuse("a record needs `#[repr(C)]`, so that its layout is fixed");
    }
    if is_packed {
        return refuse("a record cannot be packed: order its fields so that they need no padding");
    }
    Ok(())
}
