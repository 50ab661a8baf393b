//! Conversations as text: between which marks a message stands, and which part of the text is an answer.
//!
//! ```text
//! messages   user: What is a chunk?      assistant: A few tokens.
//! chatml     <|im_start|>user\nWhat is a chunk?<|im_end|>\n<|im_start|>assistant\nA few tokens.<|im_end|>\n
//! answers                                                                         ^^^^^^^^^^^^^^^^^^^^^^^^
//! ```
//!
//! An answer is what the assistant says, with the mark that ends it: what a model has to produce, and to stop at. Marks
//! are text like any other here: none becomes a special token, and a message that holds one is no way to forge a turn
//! that a tokenizer would take for a real one.
//!
//! Templates are pairs of marks for each role, and no programs: a tokenizer's own `chat_template` (Jinja) says how a
//! conversation is written, but hardly ever which part of it is an answer, and that is what a loss has to know. Any
//! template that puts marks around messages can be written as [`Own`].

use std::fmt;
use std::ops::Range;

use calm_config::Problems;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// What the loss and the scores are taken on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub enum LossOn {
    /// All text.
    #[default]
    All,
    /// What the assistant says in conversations, with the mark that ends it. A chunk counts if any of its tokens does.
    Answers,
    /// What comes after this share of a document, or of the window in which a part of a long one is read: at least 0, below
    /// 1. The share is counted in whole chunks, rounded down, the chunk of BOS among them. What comes before is input.
    AfterShare(f64),
}

impl LossOn {
    /// The share of a window that is input alone; 0 where that does not go by shares.
    pub fn input_share(self) -> f64 {
        match self {
            Self::AfterShare(share) => share,
            Self::All | Self::Answers => 0.0,
        }
    }

    /// Whether documents have a part that is input alone.
    pub fn has_input(self) -> bool {
        self == Self::Answers || self.input_share() > 0.0
    }

    /// Adds what is impossible.
    pub(crate) fn validate(self, problems: &mut Problems) {
        let share = self.input_share();
        if !(0.0..1.0).contains(&share) {
            problems
                .add("loss_on.after_share", format!("is {share}: must be at least 0 and below 1"))
                .remedy("write the share of a document that is input, such as 0.5");
        }
    }
}

/// How a conversation becomes text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Template {
    /// A known one.
    Known(Known),
    /// Marks of one's own: `{ user: { before: ..., after: ... }, assistant: ... }`.
    Own(Own),
}

/// Templates that are known by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// `<|im_start|>user`, a new line, the content, `<|im_end|>` and a new line.
    Chatml,
    /// `<|start_header_id|>user<|end_header_id|>`, two new lines, the content and `<|eot_id|>`.
    Llama3,
}

/// Marks around the messages of each role. A message of a role without marks is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Own {
    /// Around what the system says, at the beginning.
    #[serde(default)]
    pub system: Option<Marks>,
    /// Around what a person says.
    pub user: Marks,
    /// Around an answer. What stands after it ends it, and must not be empty.
    pub assistant: Marks,
    /// Around what a tool says.
    #[serde(default)]
    pub tool: Option<Marks>,
}

/// What stands around a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Marks {
    /// Before it.
    pub before: String,
    /// After it.
    pub after: String,
}

impl Default for Template {
    fn default() -> Self {
        Self::Known(Known::Chatml)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Template;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("chatml, llama3, or { user: { before: ..., after: ... }, assistant: ... }")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Template, E> {
                Known::deserialize(name.into_deserializer()).map(Template::Known)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Template, A::Error> {
                Own::deserialize(MapAccessDeserializer::new(map)).map(Template::Own)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who says what the rules are.
    System,
    /// A person.
    User,
    /// Whose part the model plays.
    Assistant,
    /// What a call answered.
    Tool,
}

impl Role {
    /// Of the names that data sets use.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "system" | "developer" => Self::System,
            "user" | "human" | "prompter" => Self::User,
            "assistant" | "gpt" | "model" | "bot" => Self::Assistant,
            "tool" | "function" | "observation" | "ipython" => Self::Tool,
            _ => return None,
        })
    }

    /// Its own name.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// What somebody says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who, as it is written.
    pub role: String,
    /// What.
    pub content: String,
}

impl Message {
    /// Of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What ends an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// White space before the mark, which is no part of the answer.
    pub lead: String,
    /// What tells the end: no white space stands around it, unless there is nothing else.
    pub mark: String,
}

/// A conversation as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The bytes of it that are answers, ascending; none where all of it counts.
    pub answers: Option<Vec<Range<usize>>>,
}

/// How conversations are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversations {
    /// Their text.
    pub template: Template,
    /// What of it counts.
    pub loss_on: LossOn,
}

impl Conversations {
    /// A whole conversation.
    ///
    /// # Errors
    /// In words: a role that nobody knows; where answers alone count, a conversation without one.
    pub fn render(&self, messages: &[Message]) -> Result<Rendered, String> {
        let rendered = self.so_far(messages)?;
        if rendered.answers.as_ref().is_some_and(Vec::is_empty) {
            return Err(match messages {
                [] => "the conversation is empty".to_owned(),
                _ => "the conversation has no answer (no message of the role `assistant`)".to_owned(),
            });
        }
        Ok(rendered)
    }

    /// A conversation up to the point where an answer is to begin.
    ///
    /// # Errors
    /// In words: a role that nobody knows.
    pub fn prompt(&self, messages: &[Message]) -> Result<Rendered, String> {
        let mut rendered = self.so_far(messages)?;
        rendered.text += &self.marks(Role::Assistant, Role::Assistant.name())?.before;
        Ok(rendered)
    }

    /// What ends an answer.
    pub fn end(&self) -> End {
        let after = self.marks(Role::Assistant, Role::Assistant.name()).unwrap_or_default().after;
        let mark = after.trim();
        let lead = after.find(mark).unwrap_or_default();
        match mark {
            "" => End { lead: String::new(), mark: after },
            mark => End { lead: after[..lead].to_owned(), mark: mark.to_owned() },
        }
    }

    fn so_far(&self, messages: &[Message]) -> Result<Rendered, String> {
        let (mut text, mut answers) = (String::new(), Vec::new());
        // What was always read so stays so: any role, by its name.
        let as_written = self.template == Template::default() && self.loss_on != LossOn::Answers;
        for Message { role: written, content } in messages {
            let role = match Role::of(written) {
                None if as_written => Role::User,
                None => {
                    return Err(format!("the role `{written}` is none of system, user, assistant and tool"));
                }
                Some(role) => role,
            };
            let Marks { before, after } = self.marks(role, if as_written { written } else { role.name() })?;
            text.push_str(&before);
            let start = text.len();
            text.push_str(content);
            text.push_str(&after);
            if role == Role::Assistant {
                answers.push(start..text.len());
            }
        }
        let answers = (self.loss_on == LossOn::Answers).then_some(answers);
        Ok(Rendered { text, answers })
    }

    fn marks(&self, role: Role, name: &str) -> Result<Marks, String> {
        let marks = |before: String, after: &str| Marks { before, after: after.to_owned() };
        let own = match &self.template {
            Template::Known(Known::Chatml) => {
                return Ok(marks(format!("<|im_start|>{name}\n"), "<|im_end|>\n"));
            }
            Template::Known(Known::Llama3) => {
                return Ok(marks(format!("<|start_header_id|>{name}<|end_header_id|>\n\n"), "<|eot_id|>"));
            }
            Template::Own(own) => own,
        };
        let marks = match role {
            Role::System => own.system.as_ref(),
            Role::User => Some(&own.user),
            Role::Assistant => Some(&own.assistant),
            Role::Tool => own.tool.as_ref(),
        };
        marks.cloned().ok_or_else(|| format!("`data.template` has no marks for the role `{}`", role.name()))
    }
}

impl Template {
    /// Adds everything that is impossible here; key paths are relative to the block that holds it as `template`.
    pub(crate) fn validate(&self, problems: &mut Problems) {
        if let Self::Own(own) = self
            && own.assistant.after.is_empty()
        {
            problems
                .add("template.assistant.after", "is empty: nothing says where an answer ends")
                .remedy("write a mark that no answer holds, such as `<|end|>`");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Vec<Message> {
        [("system", "Be brief."), ("human", "1+1?"), ("gpt", "2"), ("user", "Sure?"), ("assistant", "Yes.")]
            .map(|(role, content)| Message::new(role, content))
            .to_vec()
    }

    fn of(template: &str, loss_on: LossOn) -> Conversations {
        Conversations { template: serde_yaml::from_str(template).unwrap(), loss_on }
    }

    fn answers(rendered: &Rendered) -> Vec<&str> {
        rendered.answers.iter().flatten().map(|range| &rendered.text[range.clone()]).collect()
    }

    #[test]
    fn by_default_roles_are_written_as_they_are_and_all_counts() {
        let rendered = Conversations::default().render(&talk()[1..3]).unwrap();
        assert_eq!(rendered.text, "<|im_start|>human\n1+1?<|im_end|>\n<|im_start|>gpt\n2<|im_end|>\n");
        assert_eq!(rendered.answers, None);
        let odd = [Message::new("narrator", "so")];
        let text = Conversations::default().render(&odd).unwrap().text;
        assert_eq!(text, "<|im_start|>narrator\nso<|im_end|>\n");
        assert_eq!(Conversations::default().render(&[]).unwrap().text, "");
    }

    #[test]
    fn answers_are_what_the_assistant_says_with_its_end() {
        let own = "{ system: {after: \"\\n\"}, user: {before: 'Q: ', after: \"\\n\"}, \
                   assistant: {before: 'A: ', after: \"<end>\\n\"} }";
        for (template, said) in [
            ("chatml", ["2<|im_end|>\n", "Yes.<|im_end|>\n"]),
            ("llama3", ["2<|eot_id|>", "Yes.<|eot_id|>"]),
            (own, ["2<end>\n", "Yes.<end>\n"]),
        ] {
            let rendered = of(template, LossOn::Answers).render(&talk()).unwrap();
            assert_eq!(answers(&rendered), said);
            let all = of(template, LossOn::All).render(&talk()).unwrap();
            assert_eq!(all.answers, None);
            assert_eq!(all.text == rendered.text, template != "chatml", "{template}");
        }
        let rendered = of(own, LossOn::Answers).render(&talk()).unwrap();
        assert_eq!(rendered.text, "Be brief.\nQ: 1+1?\nA: 2<end>\nQ: Sure?\nA: Yes.<end>\n");
    }

    #[test]
    fn a_prompt_is_the_beginning_of_the_conversation_that_follows_it() {
        for template in
            ["chatml", "llama3", "{ user: {before: 'Q: '}, assistant: {before: 'A: ', after: .} }"]
        {
            let of = of(template, LossOn::Answers);
            let talk = &talk()[1..];
            let (prompt, whole) = (of.prompt(&talk[..3]).unwrap(), of.render(talk).unwrap());
            assert!(whole.text.starts_with(&prompt.text));
            assert_eq!(whole.answers.unwrap()[1].start, prompt.text.len());
            assert!(whole.text.trim_end().ends_with(&of.end().mark));
        }
    }

    #[test]
    fn an_answer_ends_before_the_white_space_that_its_mark_begins_with() {
        let end = |after: &str| {
            let own = format!("{{ user: {{}}, assistant: {{after: \"{after}\"}} }}");
            let End { lead, mark } = of(&own, LossOn::Answers).end();
            (lead, mark)
        };
        let pair = |lead: &str, mark: &str| (lead.to_owned(), mark.to_owned());
        assert_eq!(end("\\n<end>\\n"), pair("\n", "<end>"));
        assert_eq!(end("<end>"), pair("", "<end>"));
        assert_eq!(end(" a b\\n"), pair(" ", "a b"));
        assert_eq!(end("\\n\\n"), pair("", "\n\n"));
    }

    #[test]
    fn what_cannot_be_read_is_said_in_words() {
        let chatml = of("chatml", LossOn::Answers);
        let fail = |messages: &[Message]| chatml.render(messages).unwrap_err();
        assert!(fail(&[]).contains("empty"));
        assert!(fail(&talk()[..2]).contains("no answer"));
        assert!(fail(&[Message::new("asistant", "x")]).contains("`asistant` is none of"));
        let own = of("{ user: {}, assistant: {after: .} }", LossOn::All);
        assert!(own.render(&talk()).unwrap_err().contains("no marks for the role `system`"));
        let mut problems = Problems::new();
        serde_yaml::from_str::<Template>("{ user: {}, assistant: {} }").unwrap().validate(&mut problems);
        assert_eq!(problems.iter().next().unwrap().path.to_string(), "template.assistant.after");
        for wrong in ["vicuna", "{ user: {} }", "{ user: {}, assistant: {}, bot: {} }", "3"] {
            assert!(serde_yaml::from_str::<Template>(wrong).is_err(), "{wrong}");
        }
    }
}
