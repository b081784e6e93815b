"""Where each language's grammar puts names, values and what is computed from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlowRules:
    """Node types and fields of a grammar.

    Attributes:
        definitions: Node type to (field of what gets a value, field of the value). Without the second, all other
            children are the value.
        updates: Node types that change what they name, such as `i++`; their one child is both.
        augmented: Node types of assignments that read what they write unless their operator is `=`.
        patterns: Node types of several names that get values together.
        own_field: Node type of a field access, and its fields: the object and the name.
        names: (node type, field) of identifiers that are no variables: functions, fields, keywords of arguments.
        inside_out: Node types whose first child uses what the later ones define.
    """

    definitions: dict[str, tuple[str, str | None]]
    updates: frozenset[str]
    augmented: frozenset[str]
    patterns: frozenset[str]
    own_field: tuple[str, str, str]
    names: frozenset[tuple[str, str | None]]
    inside_out: frozenset[str] = frozenset()


SKIPPED_FIELDS = frozenset({"type", "returns", "return_type", "type_parameters", "superclass", "interfaces"})
"""Fields that hold types, whose names are not variables."""

OWNERS = frozenset({b"this", b"self"})
"""The object whose fields count as variables: `this.size` is the variable size."""

FLOW_RULES: dict[str, FlowRules] = {
    "python": FlowRules(
        definitions={
            "assignment": ("left", "right"),
            "augmented_assignment": ("left", "right"),
            "named_expression": ("name", "value"),
            "default_parameter": ("name", "value"),
            "typed_default_parameter": ("name", "value"),
            "for_statement": ("left", "right"),
            "for_in_clause": ("left", "right"),
            "as_pattern": ("alias", None),
        },
        updates=frozenset(),
        augmented=frozenset({"augmented_assignment"}),
        patterns=frozenset(
            {"pattern_list", "tuple_pattern", "list_pattern", "list_splat_pattern", "as_pattern_target"}
        ),
        own_field=("attribute", "object", "attribute"),
        names=frozenset(
            {
                ("function_definition", "name"),
                ("class_definition", "name"),
                ("call", "function"),
                ("attribute", "attribute"),
                ("keyword_argument", "name"),
            }
        ),
        inside_out=frozenset(
            {"list_comprehension", "set_comprehension", "dictionary_comprehension", "generator_expression"}
        ),
    ),
    "java": FlowRules(
        definitions={
            "variable_declarator": ("name", "value"),
            "assignment_expression": ("left", "right"),
            "enhanced_for_statement": ("name", "value"),
            "resource": ("name", "value"),
        },
        updates=frozenset({"update_expression"}),
        augmented=frozenset({"assignment_expression"}),
        patterns=frozenset(),
        own_field=("field_access", "object", "field"),
        names=frozenset(
            {
                ("method_declaration", "name"),
                ("constructor_declaration", "name"),
                ("class_declaration", "name"),
                ("method_invocation", "name"),
                ("field_access", "field"),
                ("annotation", "name"),
                ("marker_annotation", "name"),
                ("labeled_statement", None),
            }
        ),
    ),
    "csharp": FlowRules(
        definitions={
            "variable_declarator": ("name", None),
            "assignment_expression": ("left", "right"),
            "foreach_statement": ("left", "right"),
        },
        updates=frozenset({"postfix_unary_expression", "prefix_unary_expression"}),
        augmented=frozenset({"assignment_expression"}),
        patterns=frozenset({"tuple_expression", "tuple_pattern"}),
        own_field=("member_access_expression", "expression", "name"),
        names=frozenset(
            {
                ("method_declaration", "name"),
                ("constructor_declaration", "name"),
                ("property_declaration", "name"),
                ("class_declaration", "name"),
                ("local_function_statement", "name"),
                ("invocation_expression", "function"),
                ("member_access_expression", "name"),
                ("member_binding_expression", "name"),
                ("argument", "name"),
                ("attribute", "name"),
                ("generic_name", None),
                ("labeled_statement", None),
            }
        ),
    ),
}
