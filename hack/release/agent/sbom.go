package agent

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// WriteSBOM writes what programs are made of as CycloneDX 1.6 JSON: the modules that the compiler recorded in them, and
// Go itself, each with its licences. It has neither a time nor a serial number, so that it is the same each time.
func (s Source) WriteSBOM(w io.Writer, all map[string]Licences, programs ...string) error {
	modules := map[string]cdx.Component{}
	var own cdx.Component
	for _, p := range programs {
		info, err := buildinfo.ReadFile(p)
		if err != nil {
			return fmt.Errorf("read what %s is made of: %w", p, err)
		}
		component := func(path, version string) (cdx.Component, error) {
			l, known := all[path]
			if !known {
				return cdx.Component{}, fmt.Errorf("module %s is in the program and not among its packages", path)
			}
			return cdx.Component{Type: cdx.ComponentTypeLibrary, BOMRef: purl(path, version), Name: path, Version: version, PackageURL: purl(path, version), Licenses: choices(l.IDs)}, nil
		}
		if modules[standard], err = component(standard, info.GoVersion); err != nil {
			return err
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			if modules[m.Path], err = component(m.Path, m.Version); err != nil {
				return err
			}
		}
		own = cdx.Component{Type: cdx.ComponentTypeApplication, Name: Name, Version: s.Version, Licenses: choices(all[info.Main.Path].IDs)}
	}
	components := make([]cdx.Component, 0, len(modules))
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		components = append(components, modules[path])
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = ""
	bom.Metadata = &cdx.Metadata{Component: &own}
	bom.Components = &components
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
}

// choices are licences that all hold: of the files of a module, each is for a part of it.
func choices(ids []string) *cdx.Licenses {
	if len(ids) == 1 {
		return &cdx.Licenses{{License: &cdx.License{ID: ids[0]}}}
	}
	return &cdx.Licenses{{Expression: strings.Join(ids, " AND ")}}
}

// purl is a module's package URL (github.com/package-url/purl-spec, type golang).
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}
