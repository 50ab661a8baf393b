//! A conversation as text: each message between two marks, with its role in front.
//!
//! ```text
//! <|im_start|>user
//! What is a chunk?<|im_end|>
//! <|im_start|>assistant
//! A few tokens.<|im_end|>
//! ```
//!
//! A message is an object with `role` and `content`, or `from` and `value`; what else it has is not read. The marks are
//! text like any other here: none becomes a special token.

/// Names of the role, and of what was said.
pub(super) const NAMES: [(&str, &str); 2] = [("role", "content"), ("from", "value")];

/// Adds a message to a text.
pub(super) fn push(text: &mut String, role: &str, content: &str) {
    for part in ["<|im_start|>", role, "\n", content, "<|im_end|>\n"] {
        text.push_str(part);
    }
}
