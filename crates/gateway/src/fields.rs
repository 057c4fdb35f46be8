//! A JSON object read field by field, so that every slip names its parameter and nothing unknown passes unnoticed.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// An object whose fields are taken one after another.
pub(crate) struct Fields {
    map: Map<String, Value>,
    at: String,
}

impl Fields {
    /// Of a value that must be an object; `at` is where it stands.
    pub(crate) fn new(value: Value, at: &str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields { map, at: at.to_owned() }),
            other => Err(wrong_type(at, "an object", &other)),
        }
    }

    /// The full name of a field.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    /// A field; null is absent.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    /// A field that must be there.
    pub(crate) fn need(&mut self, key: &str) -> Result<Value> {
        let path = self.path(key);
        self.take(key).ok_or_else(|| {
            ApiError::invalid(&path, "missing_required_parameter", format!("you must provide the {path} parameter"))
        })
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong_type(&self.path(key), "a string", &other)),
        }
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(wrong_type(&self.path(key), "true or false", &other)),
        }
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(n) if n.is_finite() => Ok(Some(n)),
                _ => Err(wrong_type(&self.path(key), "a number", &value)),
            },
        }
    }

    /// A whole number in a range.
    pub(crate) fn whole(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let path = self.path(key);
        let n = value.as_u64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        match n {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            Some(_) => Err(out_of_range(&path, &value, &format!("from {} to {}", range.start(), range.end()))),
            None if value.is_number() => {
                Err(out_of_range(&path, &value, &format!("whole and from {} to {}", range.start(), range.end())))
            }
            None => Err(wrong_type(&path, "a whole number", &value)),
        }
    }

    /// A field that may only say what is done anyway.
    pub(crate) fn only(&mut self, key: &str, neutral: impl Fn(&Value) -> bool, why: &str) -> Result<()> {
        match self.take(key) {
            Some(value) if !neutral(&value) => Err(unsupported(self.path(key), why)),
            _ => Ok(()),
        }
    }

    /// Fields that say nothing about the answer.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => {
                let path: String = self.path(key).chars().take(100).collect();
                let message = format!("Unrecognized request argument supplied: {path}");
                Err(ApiError::invalid(path, "unknown_parameter", message))
            }
        }
    }
}

/// A value that this gateway cannot honour.
pub(crate) fn unsupported(param: impl Into<String>, why: &str) -> ApiError {
    let param = param.into();
    let message = format!("{param} is not supported with this value: {why}");
    ApiError::invalid(param, "unsupported_parameter", message)
}

/// A value of another type.
pub(crate) fn wrong_type(param: &str, wanted: &str, given: &Value) -> ApiError {
    let kind = match given {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let name = if param.is_empty() { "the body" } else { param };
    ApiError::invalid(param, "invalid_type", format!("Invalid type for {name}: expected {wanted}, got {kind}"))
}

/// A number that is none of those allowed.
pub(crate) fn out_of_range(param: &str, given: &dyn std::fmt::Display, range: &str) -> ApiError {
    ApiError::invalid(param, "invalid_value", format!("Invalid value {given} for {param}: it must be {range}"))
}
