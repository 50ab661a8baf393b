//! Settings of which there are several kinds: `{NAME: settings}` in a configuration, one entry a name.
//!
//! ```text
//! model: { calm: {...} }        ModelConfig = Choice<dyn FamilyConfig>,
//! head:  { energy: {...} }      HeadConfig  = Choice<dyn HeadSettings>,
//! ```
//! A [`Choice`] reads and writes itself like an enum whose variants are the entries. What is shipped stands
//! in `registry/shipped.rs`; a crate (or a test) that brings a kind of its own adds it with [`add`] before it reads a
//! configuration.

mod shipped;

use std::any::Any;
use std::borrow::Cow;
use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{PoisonError, RwLock};

use dyn_clone::DynClone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeSeed, EnumAccess, VariantAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What settings of any kind are: plain data. Implemented for all that is.
pub trait Plain: Any + Debug + Send + Sync + DynClone {
    /// For a look at the settings' own type.
    fn as_any(&self) -> &dyn Any;

    /// Whether the other settings are of the same type and equal.
    fn equals(&self, other: &dyn Any) -> bool;

    /// The settings without their name.
    fn as_serialize(&self) -> &dyn erased_serde::Serialize;
}

impl<T: Any + Debug + Send + Sync + Clone + PartialEq + Serialize> Plain for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn equals(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<T>().is_some_and(|other| self == other)
    }

    fn as_serialize(&self) -> &dyn erased_serde::Serialize {
        self
    }
}

/// Reads settings of one name.
type Read<C> = for<'de> fn(&mut dyn erased_serde::Deserializer<'de>) -> Result<Box<C>, erased_serde::Error>;

/// One name that a configuration may choose.
#[derive(Debug)]
pub struct Entry<C: Registered + ?Sized> {
    /// The key in a configuration.
    pub name: &'static str,
    /// What it is, in a line (for the schema).
    pub about: &'static str,
    /// How it is read from a published checkpoint; None of a kind that never comes as one.
    pub published: Option<C::Published>,
    pub(crate) read: Read<C>,
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

impl<C: Registered + ?Sized> Clone for Entry<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: Registered + ?Sized> Copy for Entry<C> {}

/// A trait of settings that has a registry.
pub trait Registered: Plain {
    /// Name of the choice in schemas.
    const SCHEMA: &'static str;

    /// How a kind is read from a published checkpoint.
    type Published: Copy + Debug;

    /// The key that chose these settings.
    fn name(&self) -> &'static str;

    /// What this crate brings, in the order of messages and schemas.
    fn shipped() -> &'static [Entry<Self>];

    /// What was added.
    fn added() -> &'static RwLock<Vec<Entry<Self>>>;
}

/// Adds an entry; one of the same name that was added before goes, what is shipped stays.
pub fn add<C: Registered + ?Sized>(entry: Entry<C>) {
    let mut added = C::added().write().unwrap_or_else(PoisonError::into_inner);
    added.retain(|e| e.name != entry.name);
    added.push(entry);
}

/// All entries.
pub fn entries<C: Registered + ?Sized>() -> Vec<Entry<C>> {
    let added = C::added().read().unwrap_or_else(PoisonError::into_inner);
    C::shipped().iter().chain(added.iter()).copied().collect()
}

/// Settings of one of the registered kinds.
pub struct Choice<C: Registered + ?Sized>(Box<C>);

impl<C: Registered + ?Sized> Choice<C> {
    /// These settings.
    pub fn boxed(settings: Box<C>) -> Self {
        Self(settings)
    }

    /// The settings, if they are of this type.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }
}

impl<C: Registered + ?Sized> Deref for Choice<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

impl<C: Registered + ?Sized> Clone for Choice<C> {
    fn clone(&self) -> Self {
        Self(dyn_clone::clone_box(&*self.0))
    }
}

impl<C: Registered + ?Sized> Debug for Choice<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<C: Registered + ?Sized> PartialEq for Choice<C> {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name() && self.0.equals(other.0.as_any())
    }
}

impl<C: Registered + ?Sized> Serialize for Choice<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_variant(C::SCHEMA, 0, self.0.name(), self.0.as_serialize())
    }
}

impl<'de, C: Registered + ?Sized> Deserialize<'de> for Choice<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_enum(C::SCHEMA, &[], Visitor(PhantomData))
    }
}

struct Visitor<C: ?Sized>(PhantomData<C>);

impl<'de, C: Registered + ?Sized> de::Visitor<'de> for Visitor<C> {
    type Value = Choice<C>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enum {}", C::SCHEMA)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        let (entry, settings) = access.variant_seed(Name::<C>(PhantomData))?;
        settings.newtype_variant_seed(Settings(entry))
    }
}

/// The name that a configuration chose.
struct Name<C: ?Sized>(PhantomData<C>);

impl<'de, C: Registered + ?Sized> DeserializeSeed<'de> for Name<C> {
    type Value = Entry<C>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry<C>, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<C: Registered + ?Sized> de::Visitor<'_> for Name<C> {
    type Value = Entry<C>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("variant identifier")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Entry<C>, E> {
        let entries = entries::<C>();
        if let Some(entry) = entries.iter().find(|e| e.name == name) {
            return Ok(*entry);
        }
        // As serde words it for an enum, which readers of its messages know.
        let names: Vec<String> = entries.iter().map(|e| format!("`{}`", e.name)).collect();
        let expected = match names.as_slice() {
            [a, b] => format!("{a} or {b}"),
            names => format!("one of {}", names.join(", ")),
        };
        Err(E::custom(format!("unknown variant `{name}`, expected {expected}")))
    }
}

/// The settings of an entry.
struct Settings<C: Registered + ?Sized>(Entry<C>);

impl<'de, C: Registered + ?Sized> DeserializeSeed<'de> for Settings<C> {
    type Value = Choice<C>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Choice<C>, D::Error> {
        let mut erased = <dyn erased_serde::Deserializer<'_>>::erase(deserializer);
        (self.0.read)(&mut erased).map(Choice).map_err(de::Error::custom)
    }
}

impl<C: Registered + ?Sized> JsonSchema for Choice<C> {
    fn schema_name() -> Cow<'static, str> {
        C::SCHEMA.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let choices: Vec<Schema> = entries::<C>()
            .into_iter()
            .map(|entry| {
                let settings = (entry.schema)(generator);
                json_schema!({
                    "description": entry.about,
                    "type": "object",
                    "properties": { entry.name: settings },
                    "required": [entry.name],
                    "additionalProperties": false,
                })
            })
            .collect();
        json_schema!({ "oneOf": choices })
    }
}
