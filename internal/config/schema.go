package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/jsonschema-go/jsonschema"
)

// schemaID names the schema; it is a name, nothing is fetched from there.
const schemaID = "https://rota-dns.org/schema/rota.schema.json"

// Schema returns the JSON Schema (2020-12) of the format, for editors: indented, with a newline at its end. What it accepts has the
// right keys and kinds of values; only Load judges the rest.
func Schema() []byte {
	w := &schemaWriter{defs: map[string]*jsonschema.Schema{}}
	root := w.object(grammar().fields)
	root.Schema = "https://json-schema.org/draft/2020-12/schema"
	root.ID = schemaID
	root.Title = "rota.yaml"
	root.Description = "Configuration of rota, DNS load balancing and failover."
	root.Defs = w.defs
	raw, err := json.Marshal(root)
	if err != nil {
		panic(fmt.Sprintf("config: schema of the format: %v", err)) // the format is fixed; a test writes it
	}
	var out bytes.Buffer
	_ = json.Indent(&out, raw, "", "  ")
	out.WriteByte('\n')
	return out.Bytes()
}

// schemaWriter turns shapes into schemas; named shapes become definitions.
type schemaWriter struct {
	defs map[string]*jsonschema.Schema
}

func (w *schemaWriter) of(s shape) *jsonschema.Schema {
	switch s := s.(type) {
	case object:
		return w.named(s.name, func() *jsonschema.Schema { return w.object(s.fields) })
	case variants:
		return w.named(s.name, func() *jsonschema.Schema { return w.variants(s) })
	case dict:
		out := &jsonschema.Schema{Type: "object", AdditionalProperties: w.of(s.of)}
		switch s.keys {
		case words:
			out.PatternProperties = map[string]*jsonschema.Schema{ignoredKeys: {}}
		case domainNames:
			out.PatternProperties = map[string]*jsonschema.Schema{`^(_|x-)[^.]*$`: {}}
		}
		return out
	case list:
		out := &jsonschema.Schema{Type: "array", Items: w.of(s.of)}
		if s.least > 0 {
			out.MinItems = &s.least
		}
		if s.most > 0 {
			out.MaxItems = &s.most
		}
		if s.single {
			return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{out, w.of(s.of)}}
		}
		return out
	case scalar:
		return w.scalar(s)
	case inlineCheck:
		return w.named("inlineCheck", func() *jsonschema.Schema { return w.of(s.either) })
	case either:
		var out []*jsonschema.Schema
		for _, s := range s {
			out = append(out, w.of(s))
		}
		return &jsonschema.Schema{AnyOf: out}
	}
	return &jsonschema.Schema{}
}

const ignoredKeys = "^(_|x-)"

// named writes a schema once under $defs and refers to it.
func (w *schemaWriter) named(name string, write func() *jsonschema.Schema) *jsonschema.Schema {
	if name == "" {
		return write()
	}
	if w.defs[name] == nil {
		w.defs[name] = &jsonschema.Schema{}
		*w.defs[name] = *write()
	}
	return &jsonschema.Schema{Ref: "#/$defs/" + name}
}

func (w *schemaWriter) object(fields []field) *jsonschema.Schema {
	out := &jsonschema.Schema{
		Type: "object", Properties: map[string]*jsonschema.Schema{},
		PatternProperties:    map[string]*jsonschema.Schema{ignoredKeys: {}},
		AdditionalProperties: &jsonschema.Schema{Not: &jsonschema.Schema{}},
	}
	for _, f := range fields {
		s := w.of(f.shape)
		doc := f.doc
		if f.later != nil {
			doc = joinDoc(doc, "Not supported yet.")
		}
		if doc != "" {
			s.Description = doc
		}
		out.Properties[f.key] = s
		out.PropertyOrder = append(out.PropertyOrder, f.key)
		if f.must {
			out.Required = append(out.Required, f.key)
		}
	}
	return out
}

func joinDoc(a, b string) string {
	if a == "" {
		return b
	}
	return a + " " + b
}

func (w *schemaWriter) variants(s variants) *jsonschema.Schema {
	out := &jsonschema.Schema{}
	for _, v := range s.of {
		word := any(v.word)
		one := w.object(slices.Concat([]field{{key: s.tag, shape: scalar{json: "string"}, must: true}}, v.fields, s.common))
		one.Properties[s.tag] = &jsonschema.Schema{Const: &word}
		out.AnyOf = append(out.AnyOf, one)
	}
	return out
}

// variablePattern finds a variable, which may complete any text.
const variablePattern = `\$\{[A-Za-z_][A-Za-z0-9_]*\}`

func (w *schemaWriter) scalar(s scalar) *jsonschema.Schema {
	withVariable := func(out *jsonschema.Schema) *jsonschema.Schema {
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{out, {Type: "string", Pattern: variablePattern}}}
	}
	switch s.json {
	case "boolean":
		return withVariable(&jsonschema.Schema{Type: "boolean"})
	case "integer":
		return withVariable(&jsonschema.Schema{Type: "integer", Minimum: s.from, Maximum: s.to})
	case "string":
		if s.words != nil {
			var words []any
			for _, word := range s.words {
				words = append(words, word)
				if word == "true" || word == "false" {
					words = append(words, word == "true")
				}
			}
			return withVariable(&jsonschema.Schema{Enum: words})
		}
		out := &jsonschema.Schema{Type: "string", Pattern: s.pattern}
		// A bare number is a text to the reader of a text; a TTL in seconds is one.
		if slices.Contains([]string{ttl.want, text.want, "a word"}, s.want) {
			out.Type, out.Types = "", []string{"string", "integer", "number"}
		}
		if s.pattern != "" {
			return withVariable(out)
		}
		return out
	}
	types := []string{"string", "integer", "number", "boolean"}
	if s.null {
		types = append(types, "null")
	}
	return &jsonschema.Schema{Types: types, Pattern: s.pattern}
}
