//! Reads agent.hcl and its JSON twin into plain Python values.
//!
//! No input can take the interpreter down: its size is bounded here, its depth by the parsers (64 levels and 128
//! chained operators in HCL, 128 levels in JSON), and parsing runs on a thread of its own with room for that depth.
//! No message repeats text of the input, because it may hold a key.

mod refused;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hcl::edit::expr::Expression;
use hcl::edit::structure::{Block, Body, Structure};
use hcl::edit::visit::Visit;
use hcl::edit::Span;
use hcl::eval::{Context, ErrorKind, Evaluate, FuncArgs, FuncDef, ParamType};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use serde_json::{Map, Value};

use self::refused::Refused;

/// The longest text that is read, in bytes. A real configuration takes a few KiB, and the HCL parser needs quadratic time
/// for an object with very many keys: seconds at this size.
const MAX_BYTES: usize = 1 << 18;
/// Stack of the parser's thread: far more than the deepest accepted input takes, even in a debug build.
const STACK_BYTES: usize = 64 << 20;
/// How often a waiting caller looks for Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// Name to value; None marks a value that is not UTF-8.
type Environment = HashMap<String, Option<String>>;

thread_local! {
    // hcl's functions are plain `fn`s and cannot capture, so `env` finds what it reads here.
    static ENVIRONMENT: RefCell<Environment> = RefCell::default();
}

/// Parse configuration text.
///
/// format "hcl" or "json". Returns a dict of plain values. An HCL block becomes a list of dicts under its name, however
/// often it occurs; its label goes into `name` (`id` for `models`). `env("NAME")` and `env("NAME", "default")` read the
/// environment, in JSON as a whole string `"${env(\"NAME\")}"`; a variable that is not set and has no default gives None.
///
/// `positions`, a dict, is filled with `path: (line, column, variable)` for every key of an HCL body and every env() of a JSON
/// text; `path` is a tuple of keys and indexes, `variable` is "NAME" where the value is `env("NAME")` without a default, else
/// None, and line and column are 0 where they are not known (JSON).
///
/// Raises ConfigError with line and column (1-based, in characters).
#[pyfunction]
#[pyo3(signature = (text, format, positions=None))]
pub(crate) fn parse_config<'py>(
    py: Python<'py>,
    text: &str,
    format: &str,
    positions: Option<Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let parse: fn(&str) -> Result<Parsed, Fault> = match format {
        "hcl" => parse_hcl,
        "json" => parse_json,
        _ => return Err(raise(py, &Fault::new("the format must be \"hcl\" or \"json\""))),
    };
    if text.len() > MAX_BYTES {
        let message = format!("the configuration is longer than {MAX_BYTES} bytes");
        return Err(raise(py, &Fault::new(message)));
    }
    let environment = environment(py)?;
    let text = text.to_owned();
    let (sender, mut receiver) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("perdure-config".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            ENVIRONMENT.set(environment);
            // The receiver is gone only after Ctrl-C; then nobody wants the answer.
            let _ = sender.send(parse(&text));
        })
        .map_err(|_| raise(py, &Fault::new("no thread could be started to read the configuration")))?;
    let outcome = loop {
        let receiver = &mut receiver;
        match py.detach(move || receiver.recv_timeout(SIGNAL_CHECK)) {
            Ok(outcome) => break outcome,
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            // The parser's thread panicked: a bug in a parser, but no reason to take the process down.
            Err(RecvTimeoutError::Disconnected) => break Err(Fault::new("the parser failed on this configuration")),
        }
    };
    let parsed = outcome.map_err(|fault| raise(py, &fault))?;
    if let Some(positions) = positions {
        for (path, place) in parsed.positions {
            let path: Vec<Bound<'py, PyAny>> = path.iter().map(|step| step.to_python(py)).collect::<PyResult<_>>()?;
            positions.set_item(PyTuple::new(py, path)?, place)?;
        }
    }
    to_python(py, &parsed.value)
}

/// A value and where its parts stood.
struct Parsed {
    value: Value,
    positions: Vec<(Vec<Step>, Place)>,
}

/// Line, column, environment variable.
type Place = (usize, usize, Option<String>);

/// One step of a path: a key of an object or an index of a list.
#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Step::Key(key) => Ok(key.into_pyobject(py)?.into_any()),
            Step::Index(index) => Ok(index.into_pyobject(py)?.into_any()),
        }
    }
}

/// What is wrong, and where if that is known.
struct Fault {
    message: String,
    place: Option<(usize, usize)>,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Fault { message: message.into(), place: None }
    }

    fn at(place: Option<(usize, usize)>, message: impl Into<String>) -> Self {
        Fault { message: message.into(), place }
    }
}

/// The fault as perdure's ConfigError; an import that fails is raised in its place.
fn raise(py: Python<'_>, fault: &Fault) -> PyErr {
    let error = || {
        let arguments = PyDict::new(py);
        if let Some((line, column)) = fault.place {
            arguments.set_item("line", line)?;
            arguments.set_item("column", column)?;
        }
        let class = py.import("perdure.errors")?.getattr("ConfigError")?;
        class.call((fault.message.as_str(),), Some(&arguments))
    };
    error().map_or_else(|failure| failure, PyErr::from_value)
}

/// The process's environment, and over it what Python knows. Read while attached, so that no Python thread changes it meanwhile.
fn environment(py: Python<'_>) -> PyResult<Environment> {
    let mut environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok())))
        .collect();
    let known = py.import("os")?.getattr("environ")?.call_method0("copy")?;
    for (name, value) in &known.cast_into::<PyDict>()? {
        if let Ok(name) = name.extract::<String>() {
            environment.insert(name, value.extract::<String>().ok());
        }
    }
    Ok(environment)
}

/// `env("NAME")` and `env("NAME", default)`.
fn env(arguments: FuncArgs) -> Result<hcl::Value, String> {
    let (name, default) = match arguments.as_slice() {
        [hcl::Value::String(name)] => (name, hcl::Value::Null),
        [hcl::Value::String(name), default] => (name, default.clone()),
        _ => return Err("env takes the name of a variable in quotes, and if wanted a default".into()),
    };
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("env needs the name of an environment variable".into());
    }
    ENVIRONMENT.with_borrow(|environment| match environment.get(name) {
        Some(Some(value)) => Ok(hcl::Value::from(value.as_str())),
        Some(None) => Err("the environment variable is not valid UTF-8".into()),
        None => Ok(default),
    })
}

fn functions() -> Context<'static> {
    let mut context = Context::new();
    let env = FuncDef::builder().variadic_param(ParamType::Any).build(env);
    context.declare_func(hcl::Identifier::unchecked("env"), env);
    context
}

/// The arguments if the expression is nothing but an `env(…)` call.
fn env_call(expression: &Expression) -> Option<Vec<&Expression>> {
    let call = expression.as_func_call()?;
    (call.name.namespace.is_empty() && call.name.name.as_str() == "env").then(|| call.args.iter().collect())
}

/// The variable's name if the expression is `env("NAME")`, without a default.
fn env_variable(expression: &Expression) -> Option<String> {
    match env_call(expression)?.as_slice() {
        [name] => name.as_str().map(str::to_owned),
        _ => None,
    }
}

/// Evaluates one expression. The message names the kind of fault, never a value.
fn evaluate(expression: &Expression, context: &Context<'_>) -> Result<Value, String> {
    let value =
        hcl::Expression::from(expression.clone()).evaluate(context).map_err(|error| match error.into_kind() {
            ErrorKind::UndefinedVar(_) => "unknown variable; text must stand in quotes".to_owned(),
            ErrorKind::UndefinedFunc(_) => "unknown function; the only one is env(\"NAME\", \"default\")".to_owned(),
            ErrorKind::Unexpected(_, expected) => {
                format!("a value of another type; expected {expected}")
            }
            ErrorKind::UnaryOp(operator, _) => {
                format!("the operator {operator} does not fit this value")
            }
            ErrorKind::BinaryOp(_, operator, _) => {
                format!("the operator {operator} does not fit these values")
            }
            ErrorKind::FuncCall(_, message) => message,
            _ => "this expression cannot be evaluated".to_owned(),
        })?;
    serde_json::to_value(value).map_err(|_| "this value cannot be represented".to_owned())
}

fn parse_hcl(text: &str) -> Result<Parsed, Fault> {
    let body = hcl::edit::parser::parse_body(text).map_err(|error| {
        let place = (error.location().line(), error.location().column());
        Fault::at(Some(place), format!("this is not valid HCL: {}", error.message()))
    })?;
    let mut reader = Reader { lines: Lines::new(text), context: functions(), path: Vec::new(), positions: Vec::new() };
    let mut refused = Refused::default();
    refused.visit_body(&body);
    if let Some((offset, message)) = refused.first {
        return Err(Fault::at(reader.lines.place(offset), message));
    }
    let value = Value::Object(reader.body(&body)?);
    Ok(Parsed { value, positions: reader.positions })
}

/// Turns bodies into objects and notes where their keys stand.
struct Reader<'t> {
    lines: Lines<'t>,
    context: Context<'static>,
    path: Vec<Step>,
    positions: Vec<(Vec<Step>, Place)>,
}

impl Reader<'_> {
    fn body(&mut self, body: &Body) -> Result<Map<String, Value>, Fault> {
        let mut values = Map::new();
        let mut blocks = Map::new();
        for structure in body {
            let key = match structure {
                Structure::Attribute(attribute) => &attribute.key,
                Structure::Block(block) => &block.ident,
            };
            let place = self.lines.start(key);
            let key = key.as_str();
            self.path.push(Step::Key(key.to_owned()));
            match structure {
                Structure::Attribute(attribute) => {
                    self.note(place, env_variable(&attribute.value));
                    let value = evaluate(&attribute.value, &self.context).map_err(|message| {
                        let place = self.lines.start(&attribute.value).or(place);
                        Fault::at(place, format!("{key}: {message}"))
                    })?;
                    // The parser refuses a key that occurs twice.
                    values.insert(key.to_owned(), value);
                }
                Structure::Block(block) => {
                    let same = blocks.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                    if let Value::Array(same) = same {
                        self.path.push(Step::Index(same.len()));
                        self.note(place, None);
                        same.push(Value::Object(self.block(block, place)?));
                        self.path.pop();
                    }
                }
            }
            self.path.pop();
            if values.contains_key(key) && blocks.contains_key(key) {
                let message = format!("\"{key}\" is both a block and a value");
                return Err(Fault::at(place, message));
            }
        }
        values.extend(blocks);
        Ok(values)
    }

    /// A block's fields, its label among them.
    fn block(&mut self, block: &Block, place: Option<(usize, usize)>) -> Result<Map<String, Value>, Fault> {
        let key = block.ident.as_str();
        let mut fields = self.body(&block.body)?;
        let label = match block.labels.as_slice() {
            [] => return Ok(fields),
            [label] => Value::from(label.as_str()),
            _ => return Err(Fault::at(place, format!("\"{key}\" takes one label at most"))),
        };
        let name = match key {
            "models" | "model" => "id",
            _ => "name",
        };
        if fields.insert(name.to_owned(), label).is_some() {
            let message = format!("\"{key}\" has a label and also \"{name}\"; keep one of them");
            return Err(Fault::at(place, message));
        }
        Ok(fields)
    }

    fn note(&mut self, place: Option<(usize, usize)>, variable: Option<String>) {
        let (line, column) = place.unwrap_or_default();
        self.positions.push((self.path.clone(), (line, column, variable)));
    }
}

/// Byte offsets to line and column.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    fn start(&self, node: &impl Span) -> Option<(usize, usize)> {
        self.place(node.span().map(|span| span.start))
    }

    fn place(&self, offset: Option<usize>) -> Option<(usize, usize)> {
        let offset = offset?;
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = *self.starts.get(line.checked_sub(1)?)?;
        Some((line, self.text.get(start..offset)?.chars().count() + 1))
    }
}

fn parse_json(text: &str) -> Result<Parsed, Fault> {
    let mut value: Value = serde_json::from_str(text).map_err(|error| {
        let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        // serde_json counts columns in bytes, up to the byte at fault.
        let before = line.as_bytes().get(..error.column().saturating_sub(1)).unwrap_or(line.as_bytes());
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
        Fault::at(Some((error.line(), column)), format!("this is not valid JSON: {message}"))
    })?;
    let mut positions = Vec::new();
    evaluate_json(&mut value, &functions(), &mut Vec::new(), &mut positions)?;
    Ok(Parsed { value, positions })
}

/// Replaces each string that is a whole `${env(…)}`. Other strings stay as they are: a prompt may well hold `${`.
fn evaluate_json(
    value: &mut Value,
    context: &Context<'_>,
    path: &mut Vec<Step>,
    positions: &mut Vec<(Vec<Step>, Place)>,
) -> Result<(), Fault> {
    match value {
        Value::String(text) => {
            let inner = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            let Some(inner) = inner.map(str::trim).filter(|inner| inner.starts_with("env(")) else {
                return Ok(());
            };
            let call = hcl::edit::parser::parse_expr(inner).ok().filter(|call| env_call(call).is_some());
            let Some(call) = call else {
                let message = "a string that starts with \"${env(\" has to be \"${env(\\\"NAME\\\")}\"";
                return Err(Fault::new(message));
            };
            *value = evaluate(&call, context).map_err(Fault::new)?;
            positions.push((path.clone(), (0, 0, env_variable(&call))));
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push(Step::Index(index));
                evaluate_json(item, context, path, positions)?;
                path.pop();
            }
        }
        Value::Object(fields) => {
            for (key, item) in fields.iter_mut() {
                path.push(Step::Key(key.clone()));
                evaluate_json(item, context, path, positions)?;
                path.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// At most 128 levels deep: both parsers stop there or before.
fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(number) => {
            if let Some(value) = number.as_i64() {
                value.into_pyobject(py)?.into_any()
            } else if let Some(value) = number.as_u64() {
                value.into_pyobject(py)?.into_any()
            } else {
                number.as_f64().into_pyobject(py)?.into_any()
            }
        }
        Value::String(text) => text.into_pyobject(py)?.into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            list.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (key, item) in fields {
                dict.set_item(key, to_python(py, item)?)?;
            }
            dict.into_any()
        }
    })
}
