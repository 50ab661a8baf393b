//! Documents as segments: the windows that are laid into rows.

use crate::chunks::Layout;
use crate::pack::Segment;
use crate::token_file::TokenFile;

/// The windows of these documents, in their order.
pub(crate) fn segments<'a>(
    file: &'a TokenFile,
    layout: Layout,
    documents: impl Iterator<Item = usize> + 'a,
    overlap: usize,
    max_chunks: Option<usize>,
) -> impl Iterator<Item = Segment> + 'a {
    documents.flat_map(move |document| {
        let most = max_chunks.map_or(usize::MAX, |m| m.max(1).saturating_add(usize::from(layout.bos_chunk)));
        let chunks = layout.chunks(file.document_len(document)).min(most);
        layout.windows(chunks, overlap).map(move |w| Segment {
            document: document as u32,
            start: w.start as u32,
            len: w.len as u32,
            fresh: w.fresh as u32,
        })
    })
}
