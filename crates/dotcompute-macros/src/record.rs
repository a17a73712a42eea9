//! `impl Record`, and the checks that make it sound.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;

use crate::input::{Field, Input};

/// The `unsafe impl`s below promise what bytemuck asks of `Pod`; each part is checked when the
/// program is compiled:
///
/// - inhabited, and valid for any bits: it is a struct, and each field is `Plain`, hence `Pod`;
/// - no padding: the fields' sizes add up to the size of the struct, and each field lies where the
///   one before it ends;
/// - no pointers, no interior mutability: each field is `Pod`;
/// - `Copy` and `'static`: supertraits, which the compiler checks.
///
/// `Zeroable` asks only that zeros are a value, which `Pod` fields give.
pub(crate) fn implement(input: &Input) -> TokenStream {
    let Input { ident, root, .. } = input;
    let idents: Vec<_> = input.fields.iter().map(|field| &field.ident).collect();
    let types: Vec<_> = input.fields.iter().map(|field| &field.ty).collect();
    let names = idents.iter().map(|ident| ident.unraw().to_string());
    let checks = input.fields.iter().map(|Field { ident: field, ty, .. }| {
        let gap = format!("padding before the field `{field}` of a record: fill it with a field");
        quote_spanned! {ty.span()=>
            ::core::assert!(::core::mem::offset_of!(#ident, #field) == end, #gap);
            let end = end + bytes_of::<#ty>();
        }
    });
    let tail = format!("padding at the end of the record `{ident}`: fill it with a field");
    let large = format!("the record `{ident}` is larger than 65535 bytes");
    let align = format!("the record `{ident}` is aligned to more than 8 bytes");

    quote! {
        const _: () = {
            const fn bytes_of<T: #root::record::Plain>() -> usize {
                ::core::mem::size_of::<T>()
            }
            let end = 0;
            #(#checks)*
            ::core::assert!(::core::mem::size_of::<#ident>() == end, #tail);
            ::core::assert!(::core::mem::size_of::<#ident>() <= #root::record::MAX_BYTES, #large);
            ::core::assert!(
                ::core::mem::align_of::<#ident>() <= #root::record::MAX_ALIGN_BYTES,
                #align
            );
        };

        #[automatically_derived]
        unsafe impl #root::__private::bytemuck::Zeroable for #ident {}

        #[automatically_derived]
        unsafe impl #root::__private::bytemuck::Pod for #ident {}

        #[automatically_derived]
        impl #root::record::Plain for #ident {
            const ELEMENT: #root::record::ElementType =
                #root::record::ElementType::Record(<Self as #root::record::Record>::LAYOUT);
        }

        #[automatically_derived]
        impl #root::record::Record for #ident {
            const LAYOUT: &'static #root::record::RecordLayout = &#root::record::RecordLayout {
                name: <Self as #root::Message>::TYPE_NAME,
                bytes: ::core::mem::size_of::<Self>(),
                align_bytes: ::core::mem::align_of::<Self>(),
                fields: &[#(
                    #root::record::RecordField {
                        name: #names,
                        element: <#types as #root::record::Plain>::ELEMENT,
                        offset: ::core::mem::offset_of!(Self, #idents),
                        bytes: ::core::mem::size_of::<#types>(),
                    },
                )*],
            };
        }
    }
}
