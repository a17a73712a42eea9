//! `impl Message`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::parse_quote;
use syn::spanned::Spanned;

use crate::input::{Field, Input};

pub(crate) fn implement(input: &Input) -> TokenStream {
    let Input { ident, root, name, .. } = input;
    let mut generics = input.generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(::core::marker::Send));
        parameter.bounds.push(parse_quote!(::core::marker::Sync));
        parameter.bounds.push(parse_quote!('static));
        if input.wire {
            parameter.bounds.push(parse_quote!(#root::wire::WireField));
        }
    }
    let (parameters, arguments, bounds) = generics.split_for_impl();
    let priority = input.priority.as_ref().map(|priority| {
        quote! {
            #[inline]
            fn default_priority(&self) -> u8 {
                const PRIORITY: u8 = #priority;
                PRIORITY
            }
        }
    });
    // Of a message without a wire format only its own size is known.
    let payload_bytes = (input.wire && !input.record && !input.fields.is_empty()).then(|| {
        let owned = input.fields.iter().filter(|field| !field.skip).map(|field| {
            let Field { ident, ty, .. } = field;
            quote_spanned!(ty.span()=> <#ty as #root::wire::WireField>::heap_bytes(&self.#ident))
        });
        quote! {
            fn payload_bytes(&self) -> usize {
                ::core::mem::size_of::<Self>()
                    #(+ #owned)*
            }
        }
    });
    quote! {
        #[automatically_derived]
        impl #parameters #root::Message for #ident #arguments #bounds {
            const TYPE_NAME: &'static str = #name;
            #priority
            #payload_bytes
        }
    }
}
