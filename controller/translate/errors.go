package translate

import (
	"errors"
	"fmt"
	"strconv"
)

// Error is one field of one object that cannot be honoured. Nothing but that
// object is affected.
type Error struct {
	Kind, Namespace, Name string
	Field                 string
	Value                 string
	Problem               string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s/%s: %s", e.Kind, e.Namespace, e.Name, e.Detail())
}

// Detail is the message without the object, for that object's own status.
func (e *Error) Detail() string { return fmt.Sprintf("%s: %q: %s", e.Field, e.Value, e.Problem) }

// object names the object whose fields are being read and collects what is
// wrong with them.
type object struct {
	kind, namespace, name string
	errs                  []*Error
}

func (o *object) bad(field, value, problem string) {
	o.errs = append(o.errs, &Error{Kind: o.kind, Namespace: o.namespace, Name: o.name, Field: field, Value: value, Problem: problem})
}

// err joins what was found, nil when nothing.
func (o *object) err() error {
	errs := make([]error, len(o.errs))
	for i, e := range o.errs {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// index names element i of a list field.
func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
