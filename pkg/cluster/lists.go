package cluster

import (
	"bytes"
	stdjson "encoding/json"

	"k8s.io/apimachinery/pkg/util/json"
)

// A List of all Services and slices of a cluster is one document. What the YAML library makes of it before anything
// becomes an object is some forty times as large as the text, so the items of one that is laid out as kubectl does it are
// handed to the library one by one.

// splitList takes a document apart that has a line "items:", and after it items each of which begins with a dash at the
// beginning of its line. Each is a sequence of one, and rest is the document with an empty list in their place. None: it is
// not laid out like that. What only looks like it is not whole in each part: who reads them has to see that they are.
func splitList(text []byte) (items [][]byte, rest []byte) {
	const heading = "items:"
	in, began, at := false, -1, 0
	end := func(to int) {
		if began >= 0 {
			items = append(items, text[began:to])
		}
		began = -1
	}
	for line := range bytes.Lines(text) {
		begin := at
		at += len(line)
		bare := bytes.TrimRight(line, " \r\n")
		switch {
		case string(bare) == heading:
			if in || items != nil {
				return nil, nil
			}
			in = true
			rest = append(rest, heading+" []\n"...)
		case in && bytes.HasPrefix(line, []byte("- ")):
			end(begin)
			began = begin
		case in && began >= 0 && (len(bare) == 0 || line[0] == ' ' || line[0] == '#'):
		default:
			end(begin)
			in = false
			rest = append(rest, line...)
		}
	}
	end(len(text))
	return items, rest
}

// listDocument is a list, with its items in JSON.
type listDocument struct {
	typeMeta
	Items []stdjson.RawMessage `json:"items"`
}

// takeApart reads a list item by item. Not ok: it is none, or cannot be read like that.
func takeApart(text []byte) (list listDocument, ok bool) {
	items, rest := splitList(text)
	if len(items) == 0 {
		return list, false
	}
	js, err := yamlToJSON(rest)
	if err != nil || json.Unmarshal(js, &list) != nil || list.Items == nil || len(list.Items) > 0 {
		return list, false
	}
	if _, is := lists[list.typeMeta]; !is {
		return list, false
	}
	for _, item := range items {
		js, err := yamlToJSON(item)
		var one []stdjson.RawMessage
		if err != nil || json.Unmarshal(js, &one) != nil || len(one) != 1 {
			return list, false
		}
		list.Items = append(list.Items, one[0])
	}
	return list, true
}

// list reads a document that is laid out as kubectl prints lists. False: it is not, and nothing of it was read.
func (p *parser) list(text []byte) bool {
	list, ok := takeApart(text)
	if !ok {
		return false
	}
	p.number++
	p.each(list.Items, lists[list.typeMeta], "")
	p.out.good++
	return true
}
