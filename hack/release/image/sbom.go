package main

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// writeSBOM writes what the programs are made of as CycloneDX 1.6 JSON: the modules that the compiler recorded in
// them, and Go itself. It has neither a time nor a serial number, so that it is the same each time.
func writeSBOM(file, version string, programs []string) error {
	modules := map[string]cdx.Component{}
	for _, p := range programs {
		info, err := buildinfo.ReadFile(p)
		if err != nil {
			return fmt.Errorf("read what %s is made of: %w", p, err)
		}
		add := func(path, version string) {
			modules[path] = cdx.Component{Type: cdx.ComponentTypeLibrary, BOMRef: purl(path, version), Name: path, Version: version, PackageURL: purl(path, version)}
		}
		add("std", info.GoVersion)
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			add(m.Path, m.Version)
		}
	}
	components := make([]cdx.Component, 0, len(modules))
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		components = append(components, modules[path])
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = ""
	bom.Metadata = &cdx.Metadata{Component: &cdx.Component{Type: cdx.ComponentTypeApplication, Name: program, Version: version}}
	bom.Components = &components
	return writeFile(file, func(w io.Writer) error {
		return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	})
}

// purl is a module's package URL (github.com/package-url/purl-spec, type golang).
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}
