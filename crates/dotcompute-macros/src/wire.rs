//! `impl WireMessage`, and `impl WireField` for use as the field of another message.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::parse_quote;
use syn::spanned::Spanned;

use crate::input::{Field, Input};

pub(crate) fn implement(input: &Input) -> TokenStream {
    let Input { ident, root, .. } = input;
    let mut generics = input.generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(::core::marker::Send));
        parameter.bounds.push(parse_quote!(::core::marker::Sync));
        parameter.bounds.push(parse_quote!('static));
        parameter.bounds.push(parse_quote!(#root::wire::WireField));
    }
    let (parameters, arguments, bounds) = generics.split_for_impl();

    let on_wire: Vec<_> = input.fields.iter().filter(|field| !field.skip).collect();
    let keys: Vec<_> = on_wire.iter().map(|field| &field.key).collect();
    let idents: Vec<_> = on_wire.iter().map(|field| &field.ident).collect();
    let found: Vec<_> = (0..on_wire.len()).map(|index| format_ident!("found_{index}")).collect();
    // What asks for the wire format of a field's type has the span of that type, so that the
    // compiler points there if it has none.
    let writes = on_wire.iter().map(|field| {
        let Field { ident, ty, key, .. } = field;
        quote_spanned!(ty.span()=> encoder.field::<#ty>(#key, &self.#ident))
    });
    let reads = on_wire.iter().map(|field| {
        let Field { ty, key, .. } = field;
        quote_spanned!(ty.span()=> fields.value::<#ty>(#key)?)
    });
    let values = on_wire.iter().zip(&found).map(|(field, found)| {
        let Field { ty, key, .. } = field;
        if field.default {
            quote_spanned!(ty.span()=> #found.unwrap_or_default())
        } else {
            quote_spanned!(ty.span()=> fields.require::<#ty>(#key, #found)?)
        }
    });
    let skipped = input.fields.iter().filter(|field| field.skip).map(|field| &field.ident);
    // One match on the key reads the value, unless there are no fields.
    let read = if on_wire.is_empty() {
        quote!(while fields.next_key()?.is_some() {
            fields.skip()?;
        })
    } else {
        quote! {
            while let ::core::option::Option::Some(key) = fields.next_key()? {
                match key {
                    #(#keys => {
                        #found = ::core::option::Option::Some(#reads);
                    })*
                    _ => fields.skip()?,
                }
            }
        }
    };

    quote! {
        #[automatically_derived]
        impl #parameters #root::wire::WireMessage for #ident #arguments #bounds {
            const FIELDS: &'static [&'static str] = &[#(#keys),*];

            #[inline]
            fn encode_fields(&self, encoder: &mut #root::wire::Encoder<'_>) {
                #(#writes;)*
            }

            #[inline]
            fn decode_fields(
                fields: &mut #root::wire::Fields<'_, '_>,
            ) -> ::core::result::Result<Self, #root::wire::DecodeError> {
                #(let mut #found = ::core::option::Option::None;)*
                #read
                ::core::result::Result::Ok(Self {
                    #(#idents: #values,)*
                    #(#skipped: ::core::default::Default::default(),)*
                })
            }
        }

        #[automatically_derived]
        impl #parameters #root::wire::WireField for #ident #arguments #bounds {
            #[inline]
            fn encode(&self, encoder: &mut #root::wire::Encoder<'_>) {
                encoder.nested(self);
            }

            #[inline]
            fn decode(
                decoder: &mut #root::wire::Decoder<'_>,
            ) -> ::core::result::Result<Self, #root::wire::DecodeError> {
                decoder.nested()
            }

            fn heap_bytes(&self) -> usize {
                #root::Message::payload_bytes(self)
                    .saturating_sub(::core::mem::size_of::<Self>())
            }
        }
    }
}
