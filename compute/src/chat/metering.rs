//! Inserts the meter into a template's source: `a + b` becomes `((a + b)|metered)`, so that every text and list is
//! counted. minijinja counts steps, but a text that doubles in each of sixty steps fills any memory; minijinja's
//! operators cannot be replaced, only their results can be inspected. The template's meaning and line numbers do not
//! change.

use minijinja::machinery::ast::{BinOp, BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::environment::METER;
use super::{NAME, environment, invalid};
use crate::Error;

/// Steps of a render, at most. A message takes some hundred.
const MAX_STEPS: u64 = 1_000_000;
/// Bytes of literal text that a render may write. Literal text is made without an operator, so the number of steps
/// bounds it.
const MAX_LITERAL_BYTES: u64 = 256 << 20;

/// Tokens in one tag, at most. `a + b + …` and `x.y.z…` nest as deep as they are long, and minijinja recurses into
/// them.
const MAX_TAG_TOKENS: usize = 1_000;
/// `elif`s in a template, at most: each is a block inside the one before, which minijinja does not count.
const MAX_BRANCHES: usize = 200;

/// A template that can be rendered.
pub(super) struct Metered {
    pub(super) source: String,
    /// Steps of a render, at most.
    pub(super) fuel: u64,
}

/// Errors (`InvalidInput`): the template cannot be parsed.
pub(super) fn metered(source: &str) -> Result<Metered, Error> {
    let source = &without_generation_marks(source);
    // minijinja counts offsets in 32 bits and columns in 16; the caller bounds the length.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|error| environment::error(&error))?;
    refuse_depth(source, syntax.clone())?;
    let ast = parse(source, NAME, syntax).map_err(|error| environment::error(&error))?;
    let mut places = Places { source, insertions: Vec::new(), longest_literal: 0, failed: None };
    places.statement(&ast);
    if let Some(what) = places.failed {
        return Err(invalid(what));
    }
    let fuel = MAX_STEPS.min(MAX_LITERAL_BYTES / places.longest_literal.max(1) as u64);
    Ok(Metered { source: places.apply(), fuel })
}

/// Refuses templates that would overflow the stack, before any recursion. (Nested blocks and parentheses are counted by
/// minijinja.) Errors of tokenising are left to the parser.
fn refuse_depth(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let (mut tokens, mut branches) = (0, 0);
    for (token, span) in tokenize(source, false, syntax).map_while(Result::ok) {
        match token {
            Token::TemplateData(_) | Token::BlockEnd | Token::VariableEnd => tokens = 0,
            Token::Ident("elif") => branches += 1,
            _ => tokens += 1,
        }
        let line = span.start_line;
        if tokens > MAX_TAG_TOKENS {
            return Err(invalid(format!("the tag in line {line} nests too deep: more than {MAX_TAG_TOKENS} tokens")));
        }
        if branches > MAX_BRANCHES {
            return Err(invalid(format!("line {line} nests too deep: more than {MAX_BRANCHES} elif branches")));
        }
    }
    Ok(())
}

/// `{% generation %}` marks the assistant's part for training; in a render the block does nothing.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        // `{%}` opens a tag without closing it.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let (name, stays) = (inside.trim_matches(['-', '+', ' ', '\n']), |c| matches!(c, '-' | '+'));
        let replaced = match name {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replaced {
            Some(replaced) => {
                text.push_str("{%");
                text.extend(inside.chars().next().filter(|c| stays(*c)));
                // Line numbers must not change.
                text.extend(inside.chars().filter(|c| *c == '\n'));
                text.push_str(&format!(" {replaced} "));
                text.extend(inside.chars().next_back().filter(|c| stays(*c)));
                text.push_str("%}");
            }
            None => text.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    text.push_str(rest);
    text
}

/// The places of insertions into the source.
struct Places<'s> {
    source: &'s str,
    /// (offset, closes, text). At one offset, closing insertions come first, the inner before the outer, which is the
    /// order in which they are added.
    insertions: Vec<(usize, bool, &'static str)>,
    longest_literal: usize,
    failed: Option<String>,
}

/// After an operator's result: `(a + b)|metered`.
const CLOSE_OPERATOR: &str = ")|metered";
/// After an expression that `.name` or `[index]` may follow: `([1, 2]|metered)`.
const CLOSE_PRIMARY: &str = "|metered)";
const _: () = assert!(METER.len() + ")|".len() == CLOSE_OPERATOR.len());
/// In a chain `a + b + c + …` only every n-th sum is metered, because parentheses nest and minijinja parses 150 levels.
const CHAIN: usize = 8;

/// The span of an expression. In `a.b[c]`, minijinja's span of `[c]` begins at `.b`; here it begins at `a`.
fn whole(expression: &Expr<'_>) -> Span {
    let inner = match expression {
        Expr::GetAttr(get) => &get.expr,
        Expr::GetItem(get) => &get.expr,
        Expr::Call(call) => &call.expr,
        Expr::Slice(slice) => &slice.expr,
        _ => return expression.span(),
    };
    let mut span = expression.span();
    // In `(a.b).c` the span of `.c` begins at the parenthesis, before the span of `a.b`.
    span.start_offset = span.start_offset.min(whole(inner).start_offset);
    span
}

impl Places<'_> {
    fn apply(mut self) -> String {
        self.insertions.sort_by_key(|&(offset, closes, _)| (offset, !closes));
        let mut text = String::with_capacity(self.source.len() + self.insertions.len() * CLOSE_OPERATOR.len());
        let mut done = 0;
        for (offset, _, inserted) in self.insertions {
            text.push_str(&self.source[done..offset]);
            text.push_str(inserted);
            done = offset;
        }
        text.push_str(&self.source[done..]);
        text
    }

    fn wrap(&mut self, span: Span, close: &'static str) {
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        if start >= end || !self.source.is_char_boundary(start) || !self.source.is_char_boundary(end) {
            self.failed = Some(format!("line {} cannot be parsed", span.start_line));
            return;
        }
        self.insertions.push((start, false, "("));
        self.insertions.push((end, true, close));
    }

    fn statements(&mut self, statements: &[Stmt<'_>]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::EmitRaw(raw) => self.longest_literal = self.longest_literal.max(raw.raw.len()),
            Stmt::ForLoop(each) => {
                self.expression(&each.iter);
                each.filter_expr.iter().for_each(|filter| self.expression(filter));
                self.statements(&each.body);
                self.statements(&each.else_body);
            }
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr);
                self.statements(&condition.true_body);
                self.statements(&condition.false_body);
            }
            Stmt::WithBlock(with) => {
                with.assignments.iter().for_each(|(_, value)| self.expression(value));
                self.statements(&with.body);
            }
            Stmt::Set(set) => {
                self.expression(&set.expr);
                // A namespace must not come to contain itself: see `meter`.
                if !matches!(set.target, Expr::Var(_)) {
                    self.leaves(&set.expr);
                }
            }
            Stmt::SetBlock(set) => {
                set.filter.iter().for_each(|filter| self.expression(filter));
                self.statements(&set.body);
            }
            Stmt::AutoEscape(escape) => self.statements(&escape.body),
            Stmt::FilterBlock(filter) => {
                self.expression(&filter.filter);
                self.statements(&filter.body);
            }
            Stmt::Macro(definition) => {
                definition.defaults.iter().for_each(|value| self.expression(value));
                self.statements(&definition.body);
            }
            Stmt::CallBlock(block) => {
                self.expression(&block.call.expr);
                self.arguments(&block.call.args);
                self.statements(&block.macro_decl.body);
            }
            Stmt::Do(action) => {
                self.expression(&action.call.expr);
                self.arguments(&action.call.args);
            }
            Stmt::Continue(_) | Stmt::Break(_) => {}
            // There is only one template, so statements that load others are refused.
            _ => self.failed = Some("blocks, includes and imports are not supported in chat templates".to_owned()),
        }
    }

    fn expression(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(slice) => {
                self.expression(&slice.expr);
                for bound in [&slice.start, &slice.stop, &slice.step].into_iter().flatten() {
                    self.expression(bound);
                }
                self.wrap(whole(expression), CLOSE_PRIMARY);
            }
            Expr::UnaryOp(unary) => self.expression(&unary.expr),
            Expr::BinOp(binary) => self.binary(binary, expression.span(), 0),
            Expr::Compare(compare) => {
                self.expression(&compare.expr);
                compare.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr);
                self.expression(&choice.true_expr);
                choice.false_expr.iter().for_each(|other| self.expression(other));
            }
            Expr::Filter(filter) => {
                filter.expr.iter().for_each(|value| self.expression(value));
                self.arguments(&filter.args);
            }
            Expr::Test(test) => {
                self.expression(&test.expr);
                self.arguments(&test.args);
            }
            Expr::GetAttr(get) => self.expression(&get.expr),
            Expr::GetItem(get) => {
                self.expression(&get.expr);
                self.expression(&get.subscript_expr);
            }
            Expr::Call(call) => {
                self.expression(&call.expr);
                self.arguments(&call.args);
            }
            Expr::List(list) => {
                list.items.iter().for_each(|item| self.expression(item));
                self.wrap(whole(expression), CLOSE_PRIMARY);
            }
            Expr::Tuple(tuple) => {
                tuple.items.iter().for_each(|item| self.expression(item));
                self.wrap(whole(expression), CLOSE_PRIMARY);
            }
            Expr::Map(map) => {
                map.keys.iter().chain(&map.values).for_each(|part| self.expression(part));
                self.wrap(whole(expression), CLOSE_PRIMARY);
            }
        }
    }

    /// `depth`: the number of operators of the same chain above this one.
    fn binary(&mut self, binary: &BinOp<'_>, span: Span, depth: usize) {
        let sums = matches!(binary.op, BinOpKind::Add | BinOpKind::Concat);
        match &binary.left {
            Expr::BinOp(left) if sums => self.binary(left, binary.left.span(), depth + 1),
            left => self.expression(left),
        }
        self.expression(&binary.right);
        if matches!(binary.op, BinOpKind::Mul) {
            // Constants are folded when a template is compiled, before any meter runs; a metered operand is no longer
            // constant.
            for side in [&binary.left, &binary.right].into_iter().filter(|side| matches!(side, Expr::Const(_))) {
                self.wrap(whole(side), CLOSE_PRIMARY);
            }
        }
        if matches!(binary.op, BinOpKind::Mul) || (sums && depth.is_multiple_of(CHAIN)) {
            self.wrap(span, CLOSE_OPERATOR);
        }
    }

    /// Meters an expression that may return a value unchanged.
    fn leaves(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_) | Expr::Call(_) => {
                self.wrap(whole(expression), CLOSE_PRIMARY)
            }
            Expr::IfExpr(choice) => {
                self.leaves(&choice.true_expr);
                choice.false_expr.iter().for_each(|other| self.leaves(other));
            }
            Expr::BinOp(binary) if matches!(binary.op, BinOpKind::ScAnd | BinOpKind::ScOr) => {
                self.leaves(&binary.left);
                self.leaves(&binary.right);
            }
            Expr::Filter(filter) => filter.expr.iter().for_each(|value| self.leaves(value)),
            _ => {}
        }
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => {
                    self.expression(value);
                }
            }
        }
    }
}
