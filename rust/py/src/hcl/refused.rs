//! What HCL can do and a configuration must not.

use std::ops::Range;

use hcl::edit::expr::{BinaryOp, BinaryOperator, ForExpr, Traversal};
use hcl::edit::template::ForDirective;
use hcl::edit::visit::{self, Visit};
use hcl::edit::Span;

/// Finds the first construct that a configuration must not use.
///
/// The evaluator overflows and divides by zero with a panic, recurses once per `[*]` without a limit, and nested `for`s over
/// short lists need unbounded time and memory. None of them has a use in a configuration.
#[derive(Default)]
pub(super) struct Refused {
    pub(super) first: Option<(Option<usize>, &'static str)>,
}

impl Refused {
    fn note(&mut self, span: Option<Range<usize>>, message: &'static str) {
        self.first.get_or_insert((span.map(|span| span.start), message));
    }
}

impl Visit for Refused {
    fn visit_binary_op(&mut self, node: &BinaryOp) {
        use BinaryOperator::{Div, Minus, Mod, Mul, Plus};
        if matches!(node.operator.value(), Div | Minus | Mod | Mul | Plus) {
            let message = "arithmetic is not supported; write the number, and put text in quotes";
            self.note(node.operator.span(), message);
        }
        visit::visit_binary_op(self, node);
    }

    fn visit_traversal(&mut self, node: &Traversal) {
        let span = node.span().or_else(|| node.expr.span());
        self.note(span, "access with . or [] is not supported; put text in quotes");
        visit::visit_traversal(self, node);
    }

    fn visit_for_expr(&mut self, node: &ForExpr) {
        self.note(node.intro.span().or_else(|| node.span()), "for is not supported");
        visit::visit_for_expr(self, node);
    }

    fn visit_for_directive(&mut self, node: &ForDirective) {
        self.note(node.span(), "for is not supported");
        visit::visit_for_directive(self, node);
    }
}
