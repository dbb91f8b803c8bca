//! The environment of templates: the filters, tests, functions and Python methods that Hugging Face's templates use.
//! Those with results far larger than their arguments are bounded here; all others count their results.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior, Value, filters, functions, syntax::SyntaxConfig,
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::calendar::CalendarTime;
use super::meter::{self, MAX_TEXT_BYTES, charge, charge_value, refusal, too_much};
use super::python;

/// The variable that holds the time for `strftime_now`: not an identifier, so that no template can set it.
pub(super) const NOW: &str = "now?";
/// The filter that `metering` inserts after operators.
pub(super) const METER: &str = "metered";
/// Depth of recursive macros and of nested lists, at most: enough for tool schemas. At minijinja's own limit, 500, a
/// thread with 2 MiB of stack may overflow.
const RECURSION_LIMIT: usize = 200;

pub(super) fn new(fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(RECURSION_LIMIT);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_formatter(|out, state, value| {
        let text = python::to_text(value)?;
        charge(state, text.len())?;
        out.write_str(&text).map_err(Error::from)
    });
    counted_filters(&mut env);
    bounded_filters(&mut env);
    // These filters have results far larger than their arguments, or print for people; no chat template in use has
    // them.
    for name in ["batch", "slice", "format", "chain", "zip", "pprint", "sum"] {
        env.remove_filter(name);
    }
    // minijinja treats `none` as an empty list; in Python it cannot be iterated.
    env.add_test("iterable", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::String)
    });
    env.remove_global("debug");
    env.add_function("range", |state: &mut State<'_, '_>, first: isize, stop: Option<isize>, step: Option<isize>| {
        let range = functions::range(first, stop, step)?;
        charge_value(state, &range)?;
        Ok::<Value, Error>(range)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(refusal(format!("the template refuses this conversation: {message}")))
    });
    env.add_function("strftime_now", |state: &mut State<'_, '_>, format: &str| {
        let now = state.lookup(NOW);
        let now = now.as_ref().and_then(|now| now.downcast_object_ref::<CalendarTime>());
        let text = now.ok_or_else(|| refusal("no time was given".to_owned()))?.format(format).map_err(refusal)?;
        charge(state, text.len())?;
        Ok::<String, Error>(text)
    });
    env.set_unknown_method_callback(method);
    env
}

/// minijinja's own filters, with their results counted.
fn counted_filters(env: &mut Environment<'static>) {
    let counted = |filter: Value| {
        move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let made = filter.call(state, &args.into_values())?;
            charge_value(state, &made)?;
            Ok::<Value, Error>(made)
        }
    };
    macro_rules! add {
        ($($name:literal => $filter:ident),* $(,)?) => {
            $(env.add_filter($name, counted(Value::from_function(filters::$filter)));)*
        };
    }
    add! {
        "lower" => lower, "upper" => upper, "title" => title, "capitalize" => capitalize, "trim" => trim,
        "split" => split, "lines" => lines, "list" => list, "items" => items, "dictsort" => dictsort,
        "reverse" => reverse, "sort" => sort, "unique" => unique, "groupby" => groupby, "map" => map,
        "select" => select, "reject" => reject, "selectattr" => selectattr, "rejectattr" => rejectattr,
        "escape" => escape, "e" => escape, "default" => default, "d" => default,
    }
    env.add_filter(METER, |state: &mut State<'_, '_>, value: Value| {
        if meter::is_namespace(&value) {
            return Err(refusal("the template puts a namespace into another".to_owned()));
        }
        charge_value(state, &value)?;
        Ok(value)
    });
}

/// Filters whose result can be far longer than their arguments.
fn bounded_filters(env: &mut Environment<'static>) {
    env.add_filter("string", |state: &mut State<'_, '_>, value: Value| {
        if value.as_str().is_some() {
            return Ok(value);
        }
        let text = python::to_text(&value)?;
        charge(state, text.len())?;
        Ok::<Value, Error>(Value::from(text))
    });
    env.add_filter("tojson", |state: &mut State<'_, '_>, value: Value, indent: Option<usize>, options: Kwargs| {
        let indent = match options.get::<Option<usize>>("indent")? {
            None => indent,
            given => given,
        };
        let separators: Option<Vec<String>> = options.get("separators")?;
        let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
        if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
            return Err(refusal("tojson: sort_keys is not supported".to_owned()));
        }
        options.assert_all_used()?;
        let separators = match separators.as_deref() {
            None => None,
            Some([item, key]) => Some((item.as_str(), key.as_str())),
            Some(_) => return Err(refusal("tojson: separators must be two strings".to_owned())),
        };
        let text = python::to_json(&value, indent, separators, ascii)?;
        charge(state, text.len())?;
        Ok(text)
    });
    env.add_filter("join", |state: &mut State<'_, '_>, values: Value, separator: Option<String>, options: Kwargs| {
        let attribute: Option<String> = options.get("attribute")?;
        options.assert_all_used()?;
        join(state, &values, separator.as_deref().unwrap_or_default(), attribute.as_deref())
    });
    env.add_filter("replace", |state: &mut State<'_, '_>, text: String, from: String, to: String| {
        replace(state, &text, &from, &to, usize::MAX)
    });
    env.add_filter("indent", |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let text = args.first().and_then(Value::as_str).unwrap_or_default();
        let width = args.get(1).and_then(Value::as_usize).unwrap_or(4);
        let lines = text.matches('\n').count() + 1;
        fits(lines.saturating_mul(width).saturating_add(text.len()))?;
        let made = Value::from_function(filters::indent).call(state, &args)?;
        charge_value(state, &made)?;
        Ok::<Value, Error>(made)
    });
}

/// Methods of Python's strings, lists and dictionaries.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = |place: usize| args.get(place).and_then(Value::as_str);
    let made = match (value.as_str(), name) {
        (Some(separator), "join") => {
            Value::from(join(state, args.first().unwrap_or(&Value::UNDEFINED), separator, None)?)
        }
        (Some(whole), "replace") => match (text(0), text(1)) {
            (Some(from), Some(to)) => {
                // A negative count means all occurrences.
                let count = args.get(2).and_then(Value::as_usize).unwrap_or(usize::MAX);
                Value::from(replace(state, whole, from, to, count)?)
            }
            _ => return Err(refusal("replace takes two strings".to_owned())),
        },
        (Some(whole), "removeprefix") => {
            Value::from(text(0).and_then(|part| whole.strip_prefix(part)).unwrap_or(whole))
        }
        (Some(whole), "removesuffix") => {
            Value::from(text(0).and_then(|part| whole.strip_suffix(part)).unwrap_or(whole))
        }
        (Some(pattern), "format") => {
            // Only widths can make the result far longer than the arguments.
            let wide =
                pattern.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4) || pattern.contains(":{");
            let arguments: usize = args.iter().map(|arg| arg.as_str().map_or(0, str::len)).sum();
            args.iter().try_for_each(meter::check_value)?;
            let fields = pattern.matches('{').count();
            fits(if wide { usize::MAX } else { pattern.len() + fields.saturating_mul(arguments) })?;
            unknown_method_callback(state, value, name, args)?
        }
        _ => unknown_method_callback(state, value, name, args)?,
    };
    charge_value(state, &made)?;
    Ok(made)
}

fn fits(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_TEXT_BYTES { Err(too_much("text in one piece", MAX_TEXT_BYTES)) } else { Ok(()) }
}

fn replace(state: &mut State<'_, '_>, text: &str, from: &str, to: &str, count: usize) -> Result<String, Error> {
    // Searching costs time too, whether or not it finds anything.
    charge(state, text.len())?;
    let places = text.matches(from).take(count).count();
    fits(places.saturating_mul(to.len()).saturating_add(text.len()))?;
    let made = text.replacen(from, to, count);
    charge(state, made.len())?;
    Ok(made)
}

fn join(state: &mut State<'_, '_>, values: &Value, separator: &str, attribute: Option<&str>) -> Result<String, Error> {
    let mut made = String::new();
    if matches!(values.kind(), ValueKind::Undefined | ValueKind::None) {
        return Ok(made);
    }
    for (place, item) in values.try_iter()?.enumerate() {
        if place > 0 {
            made.push_str(separator);
        }
        let item = match attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        made.push_str(&python::to_text(&item)?);
        fits(made.len())?;
        charge(state, item.as_str().map_or(1, str::len) + separator.len())?;
    }
    Ok(made)
}

/// A template's error as an error of this crate: the reason and the line.
pub(super) fn error(error: &Error) -> crate::Error {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "the template takes more steps than the limit; it may loop without end".to_owned(),
        ErrorKind::WriteFailure => {
            format!("the template writes more than {} bytes; it may grow without bound", meter::MAX_PROMPT_BYTES)
        }
        // The text comes from this crate or from the template itself.
        ErrorKind::InvalidOperation => match root(error).detail() {
            Some(detail) if detail.contains("recursion limit") => {
                format!("the template calls itself more than {RECURSION_LIMIT} levels deep")
            }
            Some(detail) => detail.to_owned(),
            None => error.to_string(),
        },
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    super::invalid(format!("{what}{line}"))
}

/// The innermost template error.
fn root(error: &Error) -> &Error {
    let mut innermost = error;
    while let Some(source) = std::error::Error::source(innermost).and_then(|source| source.downcast_ref::<Error>()) {
        innermost = source;
    }
    innermost
}
